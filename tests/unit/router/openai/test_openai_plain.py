"""A mould recognises what the expression it was learned with would find, and nothing else."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.openai.plain import ID_MEMBER, IDS, PLAIN_CHAT, PLAIN_TEXT, TEXT, Mould

HEAD = b'data: {"id":"c","object":"x","created":1,"model":"m","choices":[{"index":'
IDENTITY = {"id": "c", "object": "x", "created": 1, "model": "m"}


def event(text: str, ids: list[int] | None = None, *, chat: bool = True, name: str = "content") -> bytes:
    choice = {"index": 0, **({"delta": {name: text}} if chat else {"text": text}), "logprobs": None}
    choice["finish_reason"] = None
    if ids is not None:
        choice["token_ids"] = ids
    told = json.dumps({**IDENTITY, "choices": [choice]}, separators=(",", ":"), ensure_ascii=False)
    return b"data: " + told.encode() + b"\n\n"


def mould_of(data: bytes, expression: re.Pattern[bytes] = PLAIN_CHAT) -> Mould:
    plain = expression.match(data, len(HEAD))
    assert plain is not None
    return Mould(data, 0, plain)


@pytest.mark.parametrize("text", [" a", "x", "{}[]:,'", "é", "漢字", "~ !#"])
@pytest.mark.parametrize("ids", [None, [7]])
@pytest.mark.parametrize("chat", [True, False])
def test_usual_texts_are_recognised(text: str, ids: list[int] | None, chat: bool) -> None:
    """Alone, and among others that came with them."""
    expression = PLAIN_CHAT if chat else PLAIN_TEXT
    mould = mould_of(event("first", None if ids is None else [123456], chat=chat), expression)
    data = event(text, ids, chat=chat)
    told = None if ids is None else b"7"
    assert mould.read(data, 0) == (len(data), text.encode(), told)
    assert mould.read(data + data, 0) == (len(data), text.encode(), told)
    assert mould.read(data + data, len(data)) == (2 * len(data), text.encode(), told)


@pytest.mark.parametrize("text", ["", '"', "\\", "\n", "\x7f\u00a0", "\u2028"])
def test_others_are_left_to_the_expression(text: str) -> None:
    """Escapes, nothing, and what Unicode does not print."""
    assert mould_of(event("first")).read(event(text), 0)[0] == 0


@pytest.mark.parametrize("broken", [b"\xff", b"\xc3", b"\x01", b"\n", b"\r"])
def test_what_json_forbids_is_never_recognised(broken: bytes) -> None:
    """Bytes that would end a client's decoder, or an event in its middle."""
    data = event("first").replace(b"first", b"a" + broken + b"b")
    assert mould_of(event("first")).read(data, 0)[0] == 0


@pytest.mark.parametrize("ids", [None, [7]])
def test_a_part_of_an_event_is_none(ids: list[int] | None) -> None:
    """Wherever a read cuts it: a compiled mould once raised where what was left was shorter than what follows a text."""
    data = event("text", ids)
    mould = mould_of(data)
    assert [mould.read(data[:size], 0)[0] for size in range(len(data))] == [0] * len(data)
    assert mould.read(data + data[:-1], len(data))[0] == 0


def test_ids_that_come_or_go_are_not_overlooked() -> None:
    """A mould with ids knows no event without, nor the other way round, nor several ids."""
    bare, told = event("x"), event("x", [1])
    assert mould_of(bare).read(told, 0)[0] == 0
    assert mould_of(told).read(bare, 0)[0] == 0
    assert mould_of(told).read(event("x", [1, 2]), 0)[0] == 0


PIECES = st.sampled_from(
    [b'"', b"\\", b"}", b"]", b"]}]}\n\n", b"\n\n", b"null", b"7", b",", b"\xc3\xa9", b"\xff", b"a"]
)


@given(
    st.text(max_size=4),
    st.none() | st.lists(st.integers(0, 99), min_size=1, max_size=2),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 6), PIECES), max_size=3),
)
def test_it_finds_what_the_expression_finds(
    text: str, ids: list[int] | None, chat: bool, changes: list[tuple[int, int, bytes]]
) -> None:
    """Whatever was done to an event: if the mould takes it, the expression does, with the same end, text, ids and member."""
    expression = PLAIN_CHAT if chat else PLAIN_TEXT
    mould = mould_of(event("first", None if ids is None else [1], chat=chat), expression)
    data = event(text, ids, chat=chat)
    for back, gone, piece in changes:
        at = len(data) - back % len(data)  # near the end, mostly: that is where texts are
        data = data[:at] + piece + data[at + gone :]
    end, found, told = mould.read(data, 0)
    if end:
        plain = expression.match(data, len(HEAD))
        assert data.startswith(HEAD)
        assert plain is not None
        assert (plain.end(), plain.group(TEXT), plain.group(IDS)) == (end, found, told)
        if told is not None:
            assert plain.span(ID_MEMBER) == mould.id_member(end, told)


def test_reasoning_is_told_apart() -> None:
    """It is no part of the text that a successor goes on from."""
    assert mould_of(event("hm", name="reasoning")).reasoning
    assert not mould_of(event("hm")).reasoning


class Counted(bytes):
    """Counts what is cut out of it."""

    cut = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        if isinstance(key, slice):
            Counted.cut += len(found)
        return found


@pytest.mark.parametrize("ids", [None, [7]])
def test_a_long_read_is_copied_once(ids: list[int] | None) -> None:
    """A thousand events in one read: each had copied all that came after it."""
    one = event("text", ids)
    mould, data, at = mould_of(one), Counted(one * 1000), 0
    Counted.cut = 0
    while at < len(data):
        at = mould.read(data, at)[0]
        assert at, "an event was not recognised"
    assert Counted.cut <= 2 * len(data)
