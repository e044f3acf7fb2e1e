"""Cut answers continue through the API, by text and by token ids, and their blocks are found again."""

from typing import Any

import pytest

from backends.simulated.bodies import chat_text
from backends.simulated.tokens import expected_text
from tests.support.simulated_calls import CHAT, COMPLETIONS, HELLO, answer


@pytest.mark.parametrize("k", range(40))
def test_a_chat_cut_after_k_tokens_resumes_token_for_token(k: int):
    """The rest of a cut chat comes from continue_final_message, and from prompt ids + token ids, alike."""
    base = {"messages": HELLO, "ignore_eos": True}
    whole = answer(CHAT, base | {"max_tokens": 40, "return_token_ids": True})
    text = whole["choices"][0]["message"]["content"]
    ids = whole["choices"][0]["token_ids"]
    said = expected_text(chat_text(HELLO), k)
    rest = text[len(said) :]
    by_text = answer(
        CHAT,
        {
            "messages": [*HELLO, {"role": "assistant", "content": said}],
            "continue_final_message": True, "add_generation_prompt": False, "ignore_eos": True, "max_tokens": 40 - k,
        },
    )  # fmt: skip
    by_ids = answer(
        COMPLETIONS, {"prompt": whole["prompt_token_ids"] + ids[:k], "max_tokens": 40 - k, "ignore_eos": True}
    )
    assert by_text["choices"][0]["message"]["content"] == rest
    assert by_ids["choices"][0]["text"] == rest


def test_a_natural_answer_resumes_to_the_same_end():
    """Without max_tokens too, parts make up the whole, to the same finish."""
    whole = answer(CHAT, {"messages": HELLO})["choices"][0]
    assert whole["finish_reason"] == "stop"
    said = expected_text(chat_text(HELLO), 7)
    messages = [*HELLO, {"role": "assistant", "content": said}]
    rest = answer(CHAT, {"messages": messages, "continue_final_message": True, "add_generation_prompt": False})[
        "choices"
    ][0]
    assert said + rest["message"]["content"] == whole["message"]["content"]
    assert rest["finish_reason"] == "stop"


def parts_at(k: int, **rules: object) -> tuple[dict[str, Any], dict[str, Any]]:
    """The whole answer, and its rest asked for by token ids after `k` of them; `rules` hold for both."""
    whole = answer(CHAT, {"messages": HELLO, "max_tokens": 60, "return_token_ids": True, **rules})
    ids = whole["choices"][0]["token_ids"]
    prompt = whole["prompt_token_ids"] + ids[:k]
    rest = answer(COMPLETIONS, {"prompt": prompt, "max_tokens": 60 - k, "return_token_ids": True, **rules})
    return whole["choices"][0], rest["choices"][0]


def test_the_rest_stops_at_the_same_stop_string():
    """For every cut before the stop string begins, the rest ends right before it, at the same token, for the same reason."""
    stop = expected_text(chat_text(HELLO), 20)[-9:]
    begins = 20 - len(stop.split())
    for k in range(begins):
        whole, rest = parts_at(k, stop=[stop])
        assert (rest["finish_reason"], rest["stop_reason"]) == (whole["finish_reason"], whole["stop_reason"])
        assert expected_text(chat_text(HELLO), k) + rest["text"] == whole["message"]["content"]
        assert whole["token_ids"] == whole["token_ids"][:k] + rest["token_ids"]
    assert stop not in whole["message"]["content"]


def test_the_rest_ends_where_nature_has_it():
    """For every cut, the rest has the whole answer's tokens, its end-of-sequence token with them."""
    for k in range(60):
        whole, rest = parts_at(k, max_tokens=400)
        assert whole["token_ids"][k:] == rest["token_ids"]
        assert rest["finish_reason"] == whole["finish_reason"] == "stop"
