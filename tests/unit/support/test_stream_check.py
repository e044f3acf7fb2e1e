"""The judge of streams: each way of spoiling a right transcript is seen, and a right one passes."""

import json
from collections.abc import Callable

import pytest

from tests.support.simulated_calls import CHAT, COMPLETIONS, answer, ask
from tests.support.stream_check import ERROR_EVENT, expected_answer, faults_of_document, faults_of_stream
from tests.support.stream_client import chat_body, document_of, plain_body

BODY = chat_body("Judge me", 8)
EXPECTED = expected_answer(BODY)
DONE = b"data: [DONE]\n\n"
Events = list[bytes]


def transcript(body: dict[str, object] = BODY) -> Events:
    path = CHAT if "messages" in body else COMPLETIONS
    return [part + b"\n\n" for part in ask(path, body)[1].split(b"\n\n")[:-1]]


@pytest.mark.parametrize("body", [BODY, plain_body("Judge me", 8), chat_body("No usage", 3, stream_options=None)])
def test_a_right_stream_has_no_faults(body: dict[str, object]) -> None:
    """What an engine says unharmed passes, comments among it."""
    events = transcript(body)
    assert faults_of_stream(expected_answer(body), 200, b": keep-alive\n\n".join(events)) == []


SPOILERS: dict[str, tuple[Callable[[Events], Events], str]] = {
    "a lost token": (lambda e: e[:3] + e[4:], "text lost"),
    "lost tokens at the end": (lambda e: e[:6] + e[-2:], "text lost at the end"),
    "a duplicated token": (lambda e: e[:4] + e[3:], "text duplicated"),
    "two tokens swapped": (lambda e: [*e[:3], e[4], e[3], *e[5:]], "text"),
    "another id": (lambda e: [*e[:4], e[4].replace(b'"id":"', b'"id":"x'), *e[5:]], "2 different values of 'id'"),
    "another time": (lambda e: [*e[:4], e[4].replace(b'"created":', b'"created":1'), *e[5:]], "2 different values of 'created'"),
    "two roles": (lambda e: [e[0], *e], "the role comes 2 times"),
    "no role": (lambda e: e[1:], "the role comes 0 times"),
    "two finish reasons": (lambda e: [*e[:-2], e[-3], *e[-2:]], "finish reasons ['length', 'length']"),
    "no finish reason": (lambda e: [x.replace(b'"length"', b"null") for x in e], "finish reasons []"),
    "another finish reason": (lambda e: [x.replace(b'"length"', b'"stop"') for x in e], "finish reasons ['stop']"),
    "two usages": (lambda e: [*e[:-1], e[-2], e[-1]], "usage 2 times"),
    "no usage": (lambda e: [*e[:-2], e[-1]], "usage 0 times"),
    "usage of a part": (lambda e: [*e[:-2], e[-2].replace(b'"completion_tokens":8', b'"completion_tokens":5'), e[-1]], "usage {"),
    "no [DONE]": (lambda e: e[:-1], "[DONE] 0 times"),
    "two [DONE]": (lambda e: [*e, DONE], "[DONE] 2 times"),
    "[DONE] in the middle": (lambda e: [*e[:4], DONE, *e[4:-1]], "[DONE] 1 times, or not last"),
    "an error event": (lambda e: [*e[:4], b'data: {"error":{"message":"x"}}\n\n'], ERROR_EVENT),
    "an error event in between": (lambda e: [*e[:4], b'data: {"error":{"message":"x"}}\n\n', *e[4:]], "an error event that is not the last"),
    "half an event": (lambda e: [*e[:4], e[4][:20]], "broken off"),
    "two events in one": (lambda e: [*e[:4], e[4][:-1], *e[5:]], "not readable"),
    "token ids": (lambda e: [*e[:4], e[4].replace(b'"token_ids":null', b'"token_ids":[7]'), *e[5:]], "token_ids that nobody asked for"),
    "another choice": (lambda e: [*e[:4], e[4].replace(b'"index":0', b'"index":1'), *e[5:]], "choices {"),
    "another kind": (lambda e: [*e[:4], e[4].replace(b"chat.completion.chunk", b"text_completion"), *e[5:]], "an object that is no"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(SPOILERS))
def test_every_spoiled_stream_is_seen(what: str) -> None:
    """Loss, duplication, order, a second identity, role, end or usage: each is named."""
    spoil, named = SPOILERS[what]
    found = faults_of_stream(EXPECTED, 200, b"".join(spoil(transcript())))
    assert any(fault.startswith(named) for fault in found), found


def test_a_refusal_is_a_fault() -> None:
    """A status is no answer."""
    assert faults_of_stream(EXPECTED, 503, b"{}") == ["status 503: b'{}'"]
    assert faults_of_document(EXPECTED, 503, b"{}") == ["status 503: b'{}'"]


@pytest.mark.parametrize(("path", "make"), [(CHAT, chat_body), (COMPLETIONS, plain_body)])
def test_documents_are_judged_alike(path: str, make: Callable[..., dict[str, object]]) -> None:
    """Text, finish reason and usage of an answer in one piece."""
    body = document_of(make("Judge me", 8))
    expected = expected_answer(body)
    whole = json.dumps(answer(path, body)).encode()
    assert faults_of_document(expected, 200, whole) == []
    first = expected.text.split(" ")[1].encode()
    for before, after in (
        (b'"length"', b'"stop"'),
        (b'"completion_tokens": 8', b'"completion_tokens": 9'),
        (first, b"x"),
    ):
        assert before in whole
        assert len(faults_of_document(expected, 200, whole.replace(before, after, 1))) == 1
    assert faults_of_document(expected, 200, whole[:-1])[0].startswith("not readable")
