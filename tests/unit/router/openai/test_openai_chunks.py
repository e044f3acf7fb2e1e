"""Each event of an engine's stream: passed on, repaired, withheld, or taken for the error it is."""

import json
from typing import Any

import pytest

from router.openai.api_error import Case
from router.openai.chunks import ChunkFilter, Usage

IDENTITY = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m"}
DONE = b"data: [DONE]\n\n"
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_tokens_details": {"cached_tokens": 3}}


def sse(value: Any) -> bytes:
    return b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n"


def choice(index: int = 0, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def chunk(*choices: Any, **extra: Any) -> bytes:
    return sse({**IDENTITY, "choices": list(choices), **extra})


def word(text: str, index: int = 0, finish: str | None = None) -> bytes:
    return chunk(choice(index, finish, content=text))


def role(index: int = 0) -> bytes:
    return chunk(choice(index, role="assistant", content=""))


USAGE_CHUNK = sse({**IDENTITY, "choices": [], "usage": USAGE})
LAST = word("", finish="stop")


def chat(*, strip: bool = True, n: int = 1) -> ChunkFilter:
    return ChunkFilter(strip_usage=strip, expected_choices=n, chat=True)


def fed(chunks: ChunkFilter, *events: bytes) -> list[bytes]:
    return [out for event in events if (out := chunks.feed(event)) is not None]


def decoded(out: bytes) -> list[dict[str, Any]]:
    return [json.loads(part[6:]) for part in out.split(b"\n\n") if part]


def test_compat_3_ordinary_events_are_the_same_bytes() -> None:
    """Role, words and finish pass as the very objects that came in; nothing is re-encoded."""
    events = [role(), word("Hello"), word(' "quoted" \\ é\u2028'), word(""), LAST]
    chunks = chat()
    out = fed(chunks, *events)
    assert [id(o) for o in out[1:4]] == [id(e) for e in events[1:4]]
    assert out == events
    assert (chunks.tokens, chunks.finished, chunks.complete) == (2, True, True)
    assert chunks.end().tail == DONE


@pytest.mark.parametrize(
    "text",
    [
        b"\x92",
        b"\xc3",
        b"\xc0\x80",
        b"\xe0\x80\x80",
        b"\xed\xa0\x80",
        b"\xf0\x80\x80\x80",
        b"\xf4\x90\x80\x80",
        b"\xff",
        b"\xc3\xa9\xa9",
    ],
)
def test_a_plain_delta_that_is_no_utf_8_is_an_error(text: bytes) -> None:
    """Passed on, it would end the client's decoder; found by fuzzing, where ordinary events before it had been recognised by their bytes."""
    chunks = chat()
    out = fed(chunks, role(), word("a"), word("b"), word("#").replace(b"#", b"x" + text), word("c"))
    assert out == [role(), word("a"), word("b")]
    assert chunks.error is not None


def test_wide_characters_pass_as_they_are() -> None:
    """The first and last of each length, raw in their bytes."""
    chunks = chat()
    texts = ["\x80", "߿", "ࠀ", "\ud7ff", "\ue000", "\uffff", "𐀀", "\U0010ffff", "é", "\u2028", "🌊"]
    events = [role(), *(word("#").replace(b"#", text.encode()) for text in texts)]
    assert [id(o) for o in fed(chunks, *events)[2:]] == [id(e) for e in events[2:]]
    assert chunks.tokens == len(texts)


def test_completions_pass_the_same_way() -> None:
    """Text chunks have no delta and get no role."""
    identity = {**IDENTITY, "object": "text_completion"}
    events = [
        sse({**identity, "choices": [{"index": 0, "text": text, "logprobs": None, "finish_reason": finish}]})
        for text, finish in (("a", None), ("b", None), ("", "length"))
    ]
    chunks = ChunkFilter(strip_usage=True, expected_choices=1, chat=False)
    assert fed(chunks, *events) == events
    assert (chunks.tokens, chunks.complete) == (2, True)


@pytest.mark.parametrize(
    ("tail", "tokens"),
    [
        (b'"finish_reason":null,"token_ids":[1,22]}]}', 2),
        (b'"logprobs":null,"finish_reason":null,"stop_reason":null,"token_ids":null}],"usage":null}', 1),
        (b'"finish_reason":null}],"usage":{"prompt_tokens":1}}', 1),
        (b'"logprobs":{"content":[]},"finish_reason":null}]}', 1),
    ],
)
def test_engines_extras_pass(tail: bytes, tokens: int) -> None:
    """Token ids, logprobs, usage on every chunk: all of it is the client's to read. Tokens are counted by their ids."""
    event = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"content":"x"},'
    chunks = chat()
    fed(chunks, role())
    assert chunks.feed(event + tail + b"\n\n") == event + tail + b"\n\n"
    assert chunks.tokens == tokens


def test_tokens_without_text_count_once_there_was_some() -> None:
    """Half characters come without text and with ids: the first token is one that is seen, from then on all count."""
    event = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null,"token_ids":[%s]}]}\n\n'
    chunks = chat()
    fed(chunks, role(), event % (b"", b"1"))
    assert chunks.tokens == 0
    fed(chunks, event % (b"x", b"2"), event % (b"", b"3"), event % (b"", b"4,5"), event % (b"y", b"6"))
    assert chunks.tokens == 5


@pytest.mark.parametrize("looked_at", [False, True])
@pytest.mark.parametrize("hide", [False, True])
def test_several_tokens_in_one_event(looked_at: bool, hide: bool) -> None:
    """An engine that is behind, or speculates, says several at once: each counts, known by its bytes or parsed, shown to the client or not."""
    event = b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"index":0,"delta":{"content":"x"},'
    chunks = chat()
    chunks.hide_ids = hide
    fed(chunks, role())
    first = event + b'"finish_reason":null,"token_ids":[7]}]}\n\n'
    then = event + b'"finish_reason":null,"token_ids":[1,22,333]}' + (b', "x": 1' if looked_at else b"")
    fed(chunks, first, first, then.replace(b', "x"', b'],"x"') + (b"}\n\n" if looked_at else b"]}\n\n"))
    assert chunks.tokens == 5


@pytest.mark.parametrize(
    "event",
    [
        b"data:" + word("x")[6:],
        word("x").replace(b"\n\n", b"\r\n\r\n"),
        word("x")[:-2],
        b": ping\nid: 3\n" + word("x"),
        b"event: message\n" + word("x"),
        b"\n\n".join([word("x").strip().replace(b'"choices"', b'\ndata: "choices"'), b""]),
    ],
    ids=["no-space", "crlf", "unended", "comment", "named", "two-lines"],
)
def test_compat_2_every_framing_becomes_ours(event: bytes) -> None:
    """Whatever an engine's framing, the client gets one data line and a blank one, with LF."""
    chunks = chat()
    fed(chunks, role())
    out = chunks.feed(event)
    assert out is not None
    assert out.startswith(b"data: {")
    assert out.count(b"\n") == 2
    assert b"\r" not in out
    assert decoded(out) == decoded(word("x"))


@pytest.mark.parametrize("event", [b": keep-alive\n\n", b"\n\n", b"id: 4\nretry: 10\n\n"])
def test_comments_are_dropped(event: bytes) -> None:
    """Keep-alives are the gateway's own business, towards each side."""
    assert chat().feed(event) is None


def test_compat_7_identity_is_constant() -> None:
    """id, created, model and object of the first chunk hold for the whole stream, whoever generates its rest."""
    other = {"id": "chatcmpl-2", "object": "x", "created": 8, "model": "n"}
    chunks = chat(strip=False)
    events = [
        role(),
        sse({**other, "choices": [choice(content="a")]}),
        sse({**other, "choices": [choice(finish="stop")]}),
    ]
    out = b"".join([*fed(chunks, *events), *fed(chunks, sse({**other, "choices": [], "usage": USAGE}))])
    assert len(decoded(out)) == 4
    for sent in decoded(out):
        assert {name: sent[name] for name in IDENTITY} == IDENTITY


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        ({"content": "x"}, {"role": "assistant", "content": "x"}),
        ({"role": "", "content": "x"}, {"role": "assistant", "content": "x"}),
        ({"role": None}, {"role": "assistant"}),
        (None, {"role": "assistant"}),
        ("x", {"role": "assistant"}),
    ],
)
def test_compat_8_the_first_delta_has_the_role(delta: Any, expected: dict[str, Any]) -> None:
    """role: assistant, whatever the engine forgot."""
    out = chat().feed(chunk({"index": 0, "delta": delta, "finish_reason": None}))
    assert out is not None
    assert decoded(out)[0]["choices"][0]["delta"] == expected


@pytest.mark.parametrize("repeated", ["", "assistant"])
def test_compat_8_later_deltas_have_none(repeated: str) -> None:
    """An empty role breaks langchainjs; a repeated one becomes "assistantassistant" in openai-python."""
    chunks = chat()
    fed(chunks, role())
    out = chunks.feed(chunk(choice(role=repeated, content="x")))
    assert out is not None
    assert decoded(out)[0]["choices"][0]["delta"] == {"content": "x"}


@pytest.mark.parametrize(
    "bad", [{"index": 0, "finish_reason": "stop"}, {"index": 0, "delta": None, "finish_reason": "stop"}]
)
def test_compat_8_delta_is_always_an_object(bad: dict[str, Any]) -> None:
    """Never missing, never null."""
    chunks = chat()
    fed(chunks, role())
    out = chunks.feed(chunk(bad))
    assert out is not None
    assert decoded(out)[0]["choices"][0]["delta"] == {}
    assert chunks.complete


def test_compat_9_choices_appear_in_order() -> None:
    """Where choice 2 is first, silent chunks of 0 and 1 go before it; their own first chunks repeat no role."""
    chunks = chat(n=3)
    out = b"".join(fed(chunks, role(2), role(0), word("a", 0), word("b", 1)))
    said = [(c["index"], c["delta"]) for sent in decoded(out) for c in sent["choices"]]
    assert said == [
        (0, {"role": "assistant", "content": ""}),
        (1, {"role": "assistant", "content": ""}),
        (2, {"role": "assistant", "content": ""}),
        (0, {"content": ""}),
        (0, {"content": "a"}),
        (1, {"content": "b"}),
    ]


def test_compat_9_tool_calls_have_an_index() -> None:
    """A position where the engine gave none; an index that is there stays."""
    chunks = chat()
    fed(chunks, role())
    out = chunks.feed(chunk(choice(tool_calls=[{"id": "a"}, {"index": None}, {"index": 5}])))
    assert out is not None
    assert [call["index"] for call in decoded(out)[0]["choices"][0]["delta"]["tool_calls"]] == [0, 1, 5]
    assert chunks.tokens == 1


def test_a_choice_without_index_has_its_position() -> None:
    """Clients index by it."""
    out = chat(n=2).feed(sse({**IDENTITY, "choices": [{"delta": {"content": "a"}}, {"delta": {"content": "b"}}]}))
    assert out is not None
    assert [c["index"] for sent in decoded(out) for c in sent["choices"]] == [0, 1]


def test_compat_10_asked_for_usage_comes_once_and_last() -> None:
    """One usage chunk, without choices, before [DONE] - also where the engine sends two, or sends it early."""
    chunks = chat(strip=False)
    assert fed(chunks, role(), USAGE_CHUNK) == [role()]
    assert fed(chunks, LAST, USAGE_CHUNK, USAGE_CHUNK, DONE) == [LAST, USAGE_CHUNK]
    assert chunks.end().tail == DONE
    early = chat(strip=False)
    assert fed(early, role(), USAGE_CHUNK, LAST, DONE) == [role(), LAST, USAGE_CHUNK]
    unended = chat(strip=False)
    assert fed(unended, role(), USAGE_CHUNK, LAST) == [role(), LAST]
    assert unended.end().tail == USAGE_CHUNK + DONE


def test_compat_10_usage_is_made_where_it_came_with_a_choice() -> None:
    """An engine that tells usage only on its last choice still owes the client a usage chunk."""
    chunks = chat(strip=False)
    last = chunk(choice(finish="stop"), usage=USAGE)
    assert fed(chunks, role(), last, DONE) == [role(), last, USAGE_CHUNK]


@pytest.mark.parametrize("strip", [True, False])
def test_compat_10_unasked_usage_is_removed(strip: bool) -> None:
    """It is recorded either way; only who asked sees it."""
    chunks = chat(strip=strip)
    out = fed(chunks, role(), LAST, USAGE_CHUNK, DONE)
    assert out == ([role(), LAST] if strip else [role(), LAST, USAGE_CHUNK])
    assert chunks.usage == Usage(prompt_tokens=5, completion_tokens=2, cached_tokens=3)


def test_continuous_usage_is_recorded_and_kept() -> None:
    """The client that asked its engine for usage on every chunk keeps it; the last figure counts."""
    chunks = chat()
    events = [role(), chunk(choice(content="a"), usage={"prompt_tokens": 5, "completion_tokens": 1})]
    assert fed(chunks, *events) == events
    assert chunks.usage == Usage(prompt_tokens=5, completion_tokens=1)


def test_compat_15_null_choices_never_pass() -> None:
    """`choices: null` with usage is the usage chunk with an empty list; without, it says nothing."""
    chunks = chat(strip=False)
    assert fed(chunks, role(), LAST, sse({**IDENTITY, "choices": None})) == [role(), LAST]
    out = chunks.feed(sse({**IDENTITY, "choices": None, "usage": USAGE}))
    assert out is not None
    assert decoded(out) == [{**IDENTITY, "choices": [], "usage": USAGE}]


@pytest.mark.parametrize(
    ("events", "whole"),
    [
        ([], False),
        ([DONE], False),
        ([role()], False),
        ([role(), word("x"), DONE], False),
        ([role(), word("x"), LAST], True),
        ([role(), word("x"), LAST, DONE], True),
        ([role(), word("x", finish=""), DONE], False),
        ([word("x", finish="length")], True),
        ([word("x", finish="abort"), DONE], False),
        ([word("x", finish="error")], False),
    ],
)
def test_compat_13_done_only_after_finish_reason(events: list[bytes], whole: bool) -> None:
    """A stream without finish reason ends in an error event, never in [DONE]; an engine's abort is no finish."""
    chunks = chat()
    fed(chunks, *events)
    end = chunks.end()
    assert (end.complete, chunks.complete) == (whole, whole)
    assert (b"[DONE]" in end.tail) == whole
    assert (b'"error"' in end.tail) == (not whole)
    assert (end.error is None) == whole


def test_compat_13_every_choice_must_finish() -> None:
    """Two of three finish reasons are a truncated answer."""
    chunks = chat(n=3)
    fed(chunks, word("", 0, "stop"), word("", 1, "stop"))
    assert not chunks.complete
    fed(chunks, word("", 2, "length"))
    assert chunks.complete


def test_nothing_passes_after_done() -> None:
    """What an engine says after its [DONE] is not part of the answer."""
    chunks = chat(strip=False)
    fed(chunks, role(), word("a"), LAST, DONE)
    assert chunks.done
    assert fed(chunks, word("b"), LAST, USAGE_CHUNK, sse({"error": "x"})) == []
    assert (chunks.tokens, chunks.complete) == (1, True)


@pytest.mark.parametrize(
    ("event", "case"),
    [
        (
            sse({"error": {"message": "EngineCore at 10.0.0.1:80", "type": "InternalServerError", "code": 500}}),
            Case.UPSTREAM,
        ),
        (chunk(choice(content="x"), error={"message": "busy", "code": 503}), Case.OVERLOADED),
        (b'event: error\ndata: {"message": "boom"}\n\n', Case.UPSTREAM),
        (sse({"object": "error", "message": "bad", "code": 400}), Case.INVALID_REQUEST),
        (sse({"error": "boom"}), Case.UPSTREAM),
        (b"data: {broken\n\n", Case.UPSTREAM),
        (b"data: Internal Server Error\n\n", Case.UPSTREAM),
        (b'data: {"a":"\xff"}\n\n', Case.UPSTREAM),
        (b"data: " + b"[" * 100_000 + b"\n\n", Case.UPSTREAM),
        (b"data: 3\n\n", Case.UPSTREAM),
        (chunk("x"), Case.UPSTREAM),
        (sse({**IDENTITY, "choices": {}}), Case.UPSTREAM),
        (chunk(choice(1, content="x")), Case.UPSTREAM),
        (chunk(choice(-1, content="x")), Case.UPSTREAM),
        (chunk({"index": 0, "delta": {}, "finish_reason": ["stop"]}), Case.UPSTREAM),
    ],
)
def test_compat_12_errors_are_never_forwarded_raw(event: bytes, case: Case) -> None:
    """An engine's error event, a broken one, or a choice nobody asked for ends the stream with our error, not its words."""
    chunks = chat()
    fed(chunks, role(), word("a"))
    assert fed(chunks, event, word("b"), LAST, DONE) == []
    assert chunks.error is not None
    assert chunks.error.case is case
    end = chunks.end()
    assert not end.complete
    assert decoded(end.tail) == [chunks.error.to_object()]
    assert b"10.0.0.1" not in end.tail


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "refusal"])
def test_reasoning_counts_as_tokens(field: str) -> None:
    """Whatever the engine calls it, it was generated."""
    chunks = chat()
    event = chunk(choice(**{field: "x"}))
    assert fed(chunks, role(), event, event) == [role(), event, event]
    assert chunks.tokens == 2


def test_engines_with_another_order_of_members_pass() -> None:
    """Where choices come first there is no short cut, and still not a byte changes."""
    events = [
        sse({"choices": [choice(role="assistant")], **IDENTITY}),
        sse({"choices": [choice(content="x")], **IDENTITY}),
    ]
    chunks = chat()
    assert fed(chunks, *events) == events
    assert chunks.tokens == 1


def test_members_before_choices_are_part_of_the_short_cut() -> None:
    """A constant system_fingerprint costs no parsing; one that changes is parsed and passes."""
    head = {**IDENTITY, "system_fingerprint": "a"}
    changed = {**IDENTITY, "system_fingerprint": "b"}
    events = [
        sse({**h, "choices": [c]})
        for h, c in ((head, choice(role="assistant")), (head, choice(content="x")), (changed, choice(content="y")))
    ]
    chunks = chat()
    assert fed(chunks, *events) == events
    assert chunks.tokens == 2
