"""An answer without streaming is whole, readable and no error - or it is not passed on."""

import json
from typing import Any

import pytest

from router.openai.api_error import Case
from router.openai.documents import check_document
from router.openai.errors import ApiError
from router.openai.usage import Usage

USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 2,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 4},
    "completion_tokens_details": {"reasoning_tokens": 1},
}


def choice(finish: str | None = "stop", **message: Any) -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", "content": "hi", **message}, "finish_reason": finish}


def answer(*choices: dict[str, Any], **extra: Any) -> bytes:
    return json.dumps(
        {"id": "c", "object": "chat.completion", "choices": list(choices), "usage": USAGE, **extra}
    ).encode()


def refused(raw: bytes, *, chat: bool = True) -> ApiError:
    with pytest.raises(ApiError) as caught:
        check_document(raw, chat=chat)
    return caught.value


def test_a_whole_answer_keeps_its_bytes() -> None:
    """Unknown members, number formats and spaces are not the gateway's to change."""
    raw = answer(choice(), x=1.0)
    document = check_document(raw, chat=True)
    assert document.body is raw
    assert document.finished
    assert document.usage == Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=4, reasoning_tokens=1)


def test_compat_15_null_content_stays_null() -> None:
    """An answer of tool calls has no content, and its null is not turned into text."""
    raw = answer(choice("tool_calls", content=None, tool_calls=[{"id": "1"}]))
    assert check_document(raw, chat=True).body is raw


def test_unknown_usage_is_none() -> None:
    """What the engine did not count is not zero."""
    assert check_document(answer(choice(), usage=None), chat=True).usage is None
    usage = check_document(answer(choice(), usage={"prompt_tokens": 5, "completion_tokens": -1}), chat=True).usage
    assert usage == Usage(prompt_tokens=5)


@pytest.mark.parametrize(
    ("raw", "case"),
    [
        (b"", Case.UPSTREAM),
        (b"<html>", Case.UPSTREAM),
        (b"{}", Case.UPSTREAM),
        (b"[]", Case.UPSTREAM),
        (b"[" * 100_000, Case.UPSTREAM),
        (b'{"choices": [{"message": {"role": "assistant", "content": "\xff"}}]}', Case.UPSTREAM),
        (answer(choices=None), Case.UPSTREAM),
        (answer(), Case.UPSTREAM),
        (answer(choices="x"), Case.UPSTREAM),
        (answer({"index": 0, "message": None}), Case.UPSTREAM),
        (answer(choice("abort")), Case.UPSTREAM),
        (answer(choice(), choice("error")), Case.UPSTREAM),
        (answer(choice(), error={"message": "x", "code": 503}), Case.OVERLOADED),
        (b'{"error": "expects model to produce exactly 1 response"}', Case.UPSTREAM),
        (b'{"object": "error", "message": "bad", "code": 400}', Case.INVALID_REQUEST),
    ],
)
def test_compat_12_a_200_that_is_no_answer_is_an_error(raw: bytes, case: Case) -> None:
    """An error inside a 200, half an answer, or no JSON at all never reaches the client as success."""
    assert refused(raw).case is case


def test_an_unfinished_choice_is_told() -> None:
    """The caller learns that a finish reason is missing."""
    assert not check_document(answer(choice(), choice(None)), chat=True).finished


@pytest.mark.parametrize("role", ["", None])
def test_a_missing_role_is_repaired(role: str | None) -> None:
    """The one edit: clients fail on a message without role."""
    document = check_document(answer(choice(role=role)), chat=True)
    assert json.loads(document.body)["choices"][0]["message"]["role"] == "assistant"
    assert json.loads(document.body)["usage"] == USAGE


def test_completions_and_embeddings_have_no_messages() -> None:
    """Texts and vectors pass, and an empty completion does not."""
    text = json.dumps({"choices": [{"index": 0, "text": "x", "finish_reason": "length"}], "usage": USAGE}).encode()
    assert check_document(text, chat=False).body is text
    vectors = json.dumps({"object": "list", "data": [{"embedding": [0.1]}], "usage": {"prompt_tokens": 3}}).encode()
    document = check_document(vectors, chat=False)
    assert (document.body, document.finished, document.usage) == (vectors, True, Usage(prompt_tokens=3))
    assert refused(b'{"choices": null}', chat=False).case is Case.UPSTREAM


@pytest.mark.parametrize("chat", [True, False])
def test_a_document_that_is_no_utf_8_is_refused(chat: bool) -> None:
    """Members that are only passed on are looked at, too: a client's decoder would end there."""
    raw = b'{"choices":[{"index":0,"text":"%b","message":{"role":"assistant"},"finish_reason":"stop"}]}'
    assert check_document(raw % "\u00e9".encode(), chat=chat).finished
    for text in (b"\x80", b"\xc3", b"\xed\xa0\x80"):
        with pytest.raises(ApiError):
            check_document(raw % text, chat=chat)
