"""Responses to OpenAI's documents: which event says what, and characters that come in pieces."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.triton.reshape import DONE, Reshaper, Transcript, Usage, estimated_tokens
from tests.support.triton_fake import token

USAGE = Usage(prompt_tokens=3, completion_tokens=2)


def reshaper(path: str = "/v1/chat/completions", *, include_usage: bool = False) -> Reshaper:
    return Reshaper(path=path, request_id="r1", created_s=17, model="alias", include_usage=include_usage)


def transcript(*, max_tokens: int = 10, streamed: bool = True, prompt: str = "x" * 8) -> Transcript:
    return Transcript(text_output="text_output", prompt=prompt, max_tokens=max_tokens, streamed=streamed)


def events(raw: bytes) -> list[Any]:
    return [json.loads(line.removeprefix(b"data: ")) for line in raw.split(b"\n\n") if line and line != DONE.strip()]


def test_a_chat_stream_has_openais_shape() -> None:
    """Role first, then content, then the finish reason with an empty delta, then [DONE]; one id, time and model throughout."""
    shape = reshaper()
    raw = shape.opening() + shape.text("a") + shape.closing("stop", USAGE)
    chunks = events(raw)
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert {(c["id"], c["created"], c["model"], c["object"]) for c in chunks} == {
        ("chatcmpl-r1", 17, "alias", "chat.completion.chunk")
    }
    assert raw.endswith(b"}\n\ndata: [DONE]\n\n")
    assert all("usage" not in chunk for chunk in chunks)


def test_usage_is_the_last_chunk_when_asked_for() -> None:
    """include_usage adds one chunk without choices before [DONE], and null usage before it."""
    shape = reshaper(include_usage=True)
    chunks = events(shape.opening() + shape.text("a") + shape.closing("stop", USAGE))
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None, None, None]
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def test_a_completion_stream_has_openais_shape() -> None:
    """Plain completions have text choices and no role."""
    shape = reshaper("/v1/completions")
    chunks = events(shape.opening() + shape.text("a") + shape.closing("length", USAGE))
    assert [(c["object"], c["id"], c["choices"][0]["text"], c["choices"][0]["finish_reason"]) for c in chunks] == [
        ("text_completion", "cmpl-r1", "a", None), ("text_completion", "cmpl-r1", "", "length")
    ]  # fmt: skip


def test_whole_answers_have_openais_shape() -> None:
    """Without streaming there is one document with usage, for both endpoints."""
    chat = json.loads(reshaper().whole("hi", "stop", USAGE))
    plain = json.loads(reshaper("/v1/completions").whole("hi", "stop", USAGE))
    assert (chat["object"], chat["choices"][0]["message"]["content"]) == ("chat.completion", "hi")
    assert (plain["object"], plain["choices"][0]["text"]) == ("text_completion", "hi")
    assert chat["usage"] == plain["usage"] == USAGE.document()


def test_no_text_makes_no_event() -> None:
    """A response without text, such as TensorRT-LLM's last one, sends nothing."""
    assert reshaper().text("") == b""


def test_a_cut_character_is_held_back() -> None:
    """Bytes of a character that is not whole yet wait for the rest."""
    script = transcript()
    assert [script.take(token(raw)) for raw in (b"a\xe6", b"\xb0", b"\xb4b")] == ["a", "", "水b"]
    assert script.rest() == ""


def test_a_character_that_never_completes_is_replaced() -> None:
    """Bytes that stay broken end as one replacement character, not as an exception."""
    script = transcript()
    assert (script.take(token(b"a\xe6")), script.rest()) == ("a", "\ufffd")


@given(st.text(max_size=40), st.data())
def test_any_cut_gives_the_same_text(text: str, data: st.DataObject) -> None:
    """However a model cuts the bytes of its text, the client reads the same characters."""
    raw = text.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    script = transcript()
    assert "".join([*(script.take(token(piece)) for piece in pieces), script.rest()]) == text


def test_told_tokens_are_believed() -> None:
    """The engine's counts, of new tokens each time, make the usage."""
    script = transcript()
    for tokens in (1, 3):
        script.take({**token("word ", tokens=tokens), "num_input_tokens": [7]})
    assert script.usage == Usage(prompt_tokens=7, completion_tokens=4)


@pytest.mark.parametrize(("streamed", "tokens"), [(True, 2), (False, 3)])
def test_untold_tokens_are_estimated(streamed: bool, tokens: int) -> None:
    """Without counts a streamed response is a token, and a whole answer is taken by its length."""
    script = transcript(streamed=streamed)
    for text in ("eight ch", "four"):
        script.take(token(text, tokens=None))
    assert script.usage == Usage(prompt_tokens=2, completion_tokens=tokens)


@pytest.mark.parametrize(
    ("finish", "tokens", "reason"),
    [("stop", 10, "stop"), ("length", 1, "length"), (None, 10, "length"), (None, 9, "stop"), ("abort", 3, "stop")],
)
def test_the_finish_reason_is_told_or_follows_from_the_tokens(finish: str | None, tokens: int, reason: str) -> None:
    """What the model says wins; else all tokens used means length."""
    script = transcript(max_tokens=10)
    script.take(token("x", tokens=tokens, finish=finish))
    assert script.finish_reason == reason


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("a", 1), ("abcd", 1), ("abcde", 2), ("水門", 2)])
def test_tokens_are_estimated_by_bytes(text: str, tokens: int) -> None:
    """Four bytes a token, rounded up."""
    assert estimated_tokens(text) == tokens
