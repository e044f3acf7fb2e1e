"""The request that goes on with an answer, and which answers have none."""

import json
from typing import Any

import pytest

from router.openai.body import parse_object
from router.openai.continuation import asks_ids, continued, guard_of, ids_asked, way_on, why_not
from router.openai.journal import Journal, Mode
from router.openai.request import read_call

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
MESSAGES = [{"role": "user", "content": "Hi \u00e9"}]


def told(text: str = "one two", *, exact: bool = True) -> Journal:
    kept = Journal(room_bytes=1000, exact=exact)
    if exact:
        kept.prompted([1, 2])
    kept.choice({"delta": {"content": text}, "token_ids": [7, 8, 9]})
    return kept


def go_on(
    mode: Mode, journal: Journal | None = None, *, path: str = CHAT, said: int = 3, **fields: Any
) -> dict[str, Any]:
    fields = {
        "model": "m",
        "stream": True,
        **({"messages": MESSAGES} if path == CHAT else {"prompt": "Once"}),
        **fields,
    }
    raw = json.dumps(fields, ensure_ascii=False).encode()
    spec = read_call(path, parse_object(raw, max_depth=64))
    body = continued(raw, spec, journal or told(), mode, chat=path == CHAT, said_tokens=said)
    found: dict[str, Any] = json.loads(body)
    return found


def test_by_ids_it_is_a_plain_completion():
    """By ids it is a plain completion."""
    body = go_on(Mode.EXACT, max_tokens=10, min_tokens=5, top_k=3, tools=[], stop=["x"])
    assert body == {
        "model": "m", "stream": True, "prompt": [1, 2, 7, 8, 9], "max_tokens": 7, "min_tokens": 2, "top_k": 3, "stop": ["x"],
    }  # fmt: skip


def test_without_a_bound_it_may_go_on_to_the_context():
    """An absent `max_tokens` would be 16 there."""
    assert go_on(Mode.EXACT)["max_tokens"] is None
    assert go_on(Mode.EXACT, path=COMPLETIONS)["max_tokens"] == 13
    assert "max_tokens" not in go_on(Mode.TEXT)


def test_by_text_the_answer_so_far_is_a_message_to_be_continued():
    """By text the answer so far is a message to be continued."""
    body = go_on(Mode.TEXT, told('say "\u00fc"\n'), max_completion_tokens=10, max_tokens=99)
    assert body["messages"] == [*MESSAGES, {"role": "assistant", "content": 'say "\u00fc"\n'}]
    assert (body["add_generation_prompt"], body["continue_final_message"]) == (False, True)
    assert body["max_tokens"] == 7
    assert "max_completion_tokens" not in body


def test_a_message_that_was_continued_already_is_continued_further():
    """A message that was continued already is continued further."""
    messages = [*MESSAGES, {"role": "assistant", "content": "So: "}]
    body = go_on(Mode.TEXT, messages=messages, continue_final_message=True, add_generation_prompt=False)
    assert body["messages"] == [*MESSAGES, {"role": "assistant", "content": "So: one two"}]


def test_by_text_a_plain_prompt_gets_longer():
    """By text a plain prompt gets longer."""
    assert go_on(Mode.TEXT, path=COMPLETIONS)["prompt"] == "Onceone two"
    assert go_on(Mode.TEXT, path=COMPLETIONS, prompt=["Once "])["prompt"] == "Once one two"


def way(journal: Journal, *, takes_ids: bool = True, **fields: Any) -> Mode:
    raw = json.dumps({"messages": MESSAGES, **fields} if "prompt" not in fields else fields).encode()
    return way_on(journal, parse_object(raw, max_depth=64), takes_ids=takes_ids)


def test_ids_are_better_than_text():
    """Ids are better than text."""
    assert way(told()) is Mode.EXACT
    assert way(told(), takes_ids=False) is Mode.TEXT
    assert way(told(exact=False)) is Mode.TEXT
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    assert way(told(), messages=image) is Mode.TEXT  # its ids are but a mark


def test_half_a_character_is_no_text():
    """An engine that escapes what is beyond the first plane as two halves, and is lost between them."""
    kept = Journal(room_bytes=100, exact=False)
    kept.said(b"a\\ud83d", None)
    assert way(kept) is Mode.NONE
    kept.said(b"\\ude00", None)
    assert way(kept) is Mode.TEXT
    assert go_on(Mode.TEXT, kept)["messages"][-1]["content"] == "a\U0001f600"


def test_some_have_no_way_on():
    """Some have no way on."""
    assert way(told(exact=False), prompt=[1, 2]) is Mode.NONE
    assert way(told(), prompt=[1, 2]) is Mode.EXACT
    parts = [*MESSAGES, {"role": "assistant", "content": [{"type": "text", "text": "a"}]}]
    assert way(told(exact=False), messages=parts, continue_final_message=True) is Mode.NONE
    thinking = told()
    thinking.thought(b"1")
    assert way(thinking) is Mode.NONE


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, None),
        ({"n": 2}, "several choices"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": False, "top_logprobs": 0, "response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"guided_json": {}}, "guided_json"),
        ({"temperature": 1, "seed": 4, "tools": []}, None),
    ],
)
def test_who_can_go_on(fields: dict[str, Any], reason: str | None):
    """Who can go on."""
    body = parse_object(json.dumps({"model": "m", "messages": MESSAGES, **fields}).encode(), max_depth=64)
    assert why_not(body.fields, read_call(CHAT, body)) == reason


def test_log_probabilities_of_the_chosen_token_are_some():
    """`logprobs: 0` of a plain completion asks for one; it equals False only in Python."""
    body = parse_object(b'{"model": "m", "prompt": "a", "logprobs": 0}', max_depth=64)
    assert why_not(body.fields, read_call(COMPLETIONS, body)) == "logprobs"


def test_ids_are_asked_for_where_they_are_of_use():
    """Ids are asked for where they are of use."""
    assert asks_ids({})
    assert not asks_ids({"tools": [{}]})
    assert not asks_ids({"stop": "x", "min_tokens": 3})
    assert not asks_ids({"stop": "x", "stop_token_ids": [3]})
    assert ids_asked({}) == ("return_token_ids",)
    assert "include_stop_str_in_output" in ids_asked({"stop": "x"})
    assert guard_of({}) is None
    assert guard_of({"stop": []}) is None
    assert guard_of({"stop": "x"}) is not None
