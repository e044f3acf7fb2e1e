"""Properties of whole streams, over everything an engine might send, and what OpenAI's own client makes of the result."""

import json
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from router.openai.chunks import ChunkFilter
from router.openai.journal import Journal

DONE = b"data: [DONE]\n\n"
IDENTITY = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
WORDS = st.lists(st.text(max_size=8), max_size=6)
FINISH = st.sampled_from(["stop", "length", "tool_calls"])


def sse(value: Any, *, spaced: bool = False, ascii_only: bool = True) -> bytes:
    text = json.dumps(value, separators=(", ", ": ") if spaced else (",", ":"), ensure_ascii=ascii_only)
    return b"data: " + text.encode() + b"\n\n"


def payloads(stream: bytes) -> list[Any]:
    return [json.loads(part[6:]) for part in stream.split(b"\n\n") if part and part != DONE[:-2]]


def texts(stream: bytes, field: str) -> dict[int, str]:
    said: dict[int, str] = {}
    for value in payloads(stream):
        for choice in value.get("choices", ()):
            part = choice["delta"].get("content") if field == "delta" else choice["text"]
            said[choice["index"]] = said.get(choice["index"], "") + (part or "")
    return said


@st.composite
def interleaved(draw: st.DrawFn) -> tuple[list[list[str]], list[tuple[int, str | None, str | None]]]:
    """Per choice some words and a finish reason; then (index, word, finish) in any interleaving."""
    choices = draw(st.lists(WORDS, min_size=1, max_size=3))
    events: list[list[tuple[int, str | None, str | None]]] = [
        [*((i, w, None) for w in words), (i, None, draw(FINISH))] for i, words in enumerate(choices)
    ]
    out = []
    while any(events):
        queue = draw(st.sampled_from([q for q in events if q]))
        out.append(queue.pop(0))
    return choices, out


@given(interleaved(), st.booleans(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_content_is_kept_whatever_the_interleaving(
    plan: tuple[list[list[str]], list[tuple[int, str | None, str | None]]],
    chat: bool,
    strip: bool,
    roles: bool,
    spaced: bool,
    ascii_only: bool,
) -> None:
    """Every choice's text arrives whole and in order, each choice first appears in order, and [DONE] ends it once."""
    words, events = plan
    chunks = ChunkFilter(strip_usage=strip, expected_choices=len(words), chat=chat)
    out = b""
    seen: set[int] = set()
    for index, word, finish in events:
        said: dict[str, Any] = {"text": word or ""}
        if chat:
            said = {"delta": {} if word is None else {"content": word}}
            if roles and index not in seen:
                said["delta"]["role"] = "assistant"
            seen.add(index)
        choice = {"index": index, **said, "logprobs": None, "finish_reason": finish}
        out += chunks.feed(sse({**IDENTITY, "choices": [choice]}, spaced=spaced, ascii_only=ascii_only)) or b""
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    out += chunks.feed(sse({**IDENTITY, "choices": [], "usage": usage})) or b""
    out += chunks.feed(DONE) or b""
    end = chunks.end()
    out += end.tail

    assert end.complete
    assert out.count(DONE) == 1
    assert out.endswith(DONE)
    assert texts(out, "delta" if chat else "text") == {i: "".join(w) for i, w in enumerate(words)}
    firsts = list(dict.fromkeys(c["index"] for value in payloads(out) for c in value["choices"]))
    assert firsts == sorted(firsts)
    assert sum(not value["choices"] for value in payloads(out)) == (0 if strip else 1)
    assert chunks.tokens == sum(bool(w) for ws in words for w in ws)
    if chat:
        roles_sent = [c["index"] for v in payloads(out) for c in v["choices"] if "role" in c["delta"]]
        assert sorted(roles_sent) == list(range(len(words)))
        as_the_sdk_reads_it(out, {i: "".join(w) for i, w in enumerate(words)})


@given(interleaved(), st.booleans(), st.booleans(), st.sampled_from([b"\n", b"\r\n", b"\r"]), st.data())
def test_any_cut_gives_the_same_stream(
    plan: tuple[list[list[str]], list[tuple[int, str | None, str | None]]],
    chat: bool,
    spaced: bool,
    newline: bytes,
    data: st.DataObject,
) -> None:
    """However its bytes were cut, a stream is forwarded, counted and ended as if its events had come one by one."""
    words, events = plan
    stream: list[bytes] = [b": hello\n\n"]
    for index, word, finish in events:
        said: dict[str, Any] = {"delta": {"content": word or ""}} if chat else {"text": word or ""}
        choice = {"index": index, **said, "logprobs": None, "finish_reason": finish}
        stream.append(sse({**IDENTITY, "choices": [choice]}, spaced=spaced))
    stream.append(DONE)
    whole = b"".join(stream)
    raw = whole.replace(b"\n", newline)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))

    by_event = ChunkFilter(strip_usage=False, expected_choices=len(words), chat=chat)
    by_cut = ChunkFilter(strip_usage=False, expected_choices=len(words), chat=chat)
    expected = b"".join(by_event.feed(event) or b"" for event in stream)
    pieces = [raw[start:end] for start, end in pairwise([0, *cuts, len(raw)])]
    assert b"".join(by_cut.read(piece) for piece in pieces) == expected
    assert (by_cut.tokens, by_cut.done, by_cut.end()) == (by_event.tokens, by_event.done, by_event.end())


def as_the_sdk_reads_it(stream: bytes, expected: dict[int, str]) -> None:
    """openai-python's accumulator dies of choices out of order and doubles repeated roles."""
    state = ChatCompletionStreamState()
    for value in payloads(stream):
        state.handle_chunk(ChatCompletionChunk.model_validate(value))
    snapshot = state.current_completion_snapshot
    assert {c.index: c.message.content or "" for c in snapshot.choices} == expected
    assert {c.message.role for c in snapshot.choices} == {"assistant"}


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["", "stop", "assistant", "x", "abort"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "index", "delta", "finish_reason", "content", "role", "usage", "error", "tool_calls", "id"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=8,
)
CHOICE = st.fixed_dictionaries(
    {},
    optional={
        "index": st.integers(-1, 3) | ANY_JSON,
        "delta": ANY_JSON,
        "finish_reason": st.sampled_from([None, "stop", "length", "abort", ""]) | ANY_JSON,
    },
)
EVENT = st.one_of(
    st.fixed_dictionaries({"choices": st.lists(CHOICE, max_size=2)}, optional={"usage": ANY_JSON, "id": ANY_JSON}).map(
        sse
    ),
    ANY_JSON.map(sse),
    st.binary(max_size=20),
    st.sampled_from([DONE, b": x\n\n", b"event: error\ndata: {}\n\n"]),
)


@given(st.lists(EVENT, max_size=8), st.integers(1, 2), st.booleans(), st.booleans())
def test_compat_13_no_stream_lies_about_its_end(events: list[bytes], expected: int, chat: bool, strip: bool) -> None:
    """Whatever an engine sends: what is forwarded is well formed, and [DONE] follows a finish reason of each choice or never comes."""
    chunks = ChunkFilter(strip_usage=strip, expected_choices=expected, chat=chat)
    forwarded = b"".join(out for event in events if (out := chunks.feed(event)) is not None)
    end = chunks.end()
    assert DONE not in forwarded
    assert b"\r" not in forwarded
    finished = set()
    for value in payloads(forwarded):
        assert "error" not in value or value["error"] is None
        assert isinstance(value["choices"], list)
        for choice in value["choices"]:
            assert 0 <= choice["index"] < expected
            assert not chat or isinstance(choice["delta"], dict)
            if choice.get("finish_reason"):
                finished.add(choice["index"])
    assert end.complete == (DONE in end.tail)
    assert end.complete != any(value.get("error") for value in payloads(end.tail))
    assert not end.complete or len(finished) == expected


def vllm_events(words: list[str], *, chat: bool) -> list[bytes]:
    """A stream as vLLM writes it where token ids were asked for; token k has id k."""
    first: dict[str, Any] = {"index": 0, "delta": {"role": "assistant", "content": ""}} if chat else {"index": 0}
    out = [sse({**IDENTITY, "choices": [first], "prompt_token_ids": [90, 91]})] if chat else []
    for k, word in enumerate(words):
        said: dict[str, Any] = {"delta": {"content": word}} if chat else {"text": word}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": None}
        if not chat:
            choice |= {"stop_reason": None, "prompt_token_ids": [90, 91] if k == 0 else None}
        out.append(sse({**IDENTITY, "choices": [{**choice, "token_ids": [k]}]}, ascii_only=False))
    last: dict[str, Any] = {"delta": {"content": ""}} if chat else {"text": ""}
    return [
        *out,
        sse({**IDENTITY, "choices": [{"index": 0, **last, "finish_reason": "stop", "token_ids": [1000]}]}),
        DONE,
    ]


@given(WORDS, st.booleans(), st.booleans(), st.lists(st.integers(0, 3000), max_size=8))
def test_token_ids_are_the_journals_alone(words: list[str], chat: bool, exact: bool, cuts: list[int]) -> None:
    """However the bytes are cut: the client sees the stream without them, and the journal has text and ids of what was said."""
    stream = b"".join(vllm_events(words, chat=chat))
    journal = Journal(room_bytes=10_000, exact=exact)
    chunks = ChunkFilter(strip_usage=False, expected_choices=1, chat=chat, journal=journal)
    chunks.hide_ids = True
    places = sorted({min(cut, len(stream)) for cut in cuts} | {0, len(stream)})
    out = b"".join(chunks.read(stream[a:b]) for a, b in pairwise(places)) + chunks.end().tail
    assert chunks.error is None
    assert b"token_ids" not in out.replace(b'"prompt_token_ids": null', b"").replace(b'"prompt_token_ids":null', b"")
    assert texts(out, "delta" if chat else "text").get(0, "") == "".join(words)
    assert journal.plain_text() == "".join(words)
    spoken = [k for k, word in enumerate(words) if word]
    if exact and spoken:
        assert journal.prompt_ids == b"90,91"
        assert bytes(journal.ids) == b"".join(b",%d" % k for k in range(spoken[-1] + 1))


@given(WORDS, WORDS, st.booleans(), st.integers(0, 200))
def test_two_engines_make_one_stream(first: list[str], second: list[str], exact: bool, half: int) -> None:
    """Cut anywhere, and gone on with by another that has another id: the client sees one answer."""
    begun = b"".join(vllm_events(first, chat=True)[:-2])
    journal = Journal(room_bytes=10_000, exact=exact)
    chunks = ChunkFilter(strip_usage=False, expected_choices=1, chat=True, journal=journal)
    chunks.hide_ids = True
    out = chunks.read(begun + b'data: {"id": "c", "choices'[: half % 27])
    said = "".join(texts(out, "delta").values())
    chunks.go_on(tokens_before=2, reshape=exact)
    journal.seam()
    other = [event.replace(b'"id":"c"', b'"id":"d"') for event in vllm_events(second, chat=not exact)[:-1]]
    usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
    rest = [*other, sse({"id": "d", "object": "x", "created": 7, "model": "m", "choices": [], "usage": usage}), DONE]
    out += b"".join(map(chunks.read, rest)) + chunks.end().tail
    assert said == "".join(first)
    assert texts(out, "delta")[0] == "".join(first + second)
    found = payloads(out)
    assert {tuple(value[name] for name in IDENTITY) for value in found} == {tuple(IDENTITY.values())}
    assert [value["usage"] for value in found if value.get("usage")] == [
        {"prompt_tokens": 3, "completion_tokens": 6, "total_tokens": 9}
    ]
    roles = [choice["delta"].get("role") for value in found for choice in value["choices"]]
    assert roles == ["assistant"] + [None] * (len(roles) - 1)
    assert out.endswith(DONE)
