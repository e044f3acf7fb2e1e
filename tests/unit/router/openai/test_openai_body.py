"""A body is parsed once, strictly, and edited by splices."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.openai.body import parse_object
from router.openai.errors import ApiError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=10,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=6)
LAYOUTS = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "indent": st.none() | st.integers(0, 2),
        "separators": st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", " :\r\n")]),
    }
)


def refusal(raw: bytes, *, max_depth: int = 64) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse_object(raw, max_depth=max_depth)
    return caught.value


@given(OBJECTS, LAYOUTS)
def test_parsing_agrees_with_the_standard_library(value: dict[str, Any], layout: dict[str, Any]) -> None:
    """Any JSON object, in any layout, reads as json.loads reads it."""
    raw = json.dumps(value, **layout).encode()
    assert parse_object(raw, max_depth=64).fields == json.loads(raw)


@given(OBJECTS, LAYOUTS, st.dictionaries(TEXT, JSON, max_size=3), st.data())
def test_edits_are_splices(
    value: dict[str, Any], layout: dict[str, Any], set_: dict[str, Any], data: st.DataObject
) -> None:
    """An edit changes the named members alone; every other one keeps its exact bytes and its place."""
    drop = data.draw(st.sets(st.sampled_from([*value, "absent"])))
    body = parse_object(json.dumps(value, **layout).encode(), max_depth=64)
    edited = body.edit({name: json.dumps(v).encode() for name, v in set_.items()}, drop)
    expected = {name: set_.get(name, v) for name, v in value.items() if name in set_ or name not in drop} | set_
    again = parse_object(edited, max_depth=64)
    assert again.fields == expected
    assert list(again.fields) == list(expected)
    for name in value.keys() - set_.keys() - drop:
        before, after = body.members[name], again.members[name]
        assert edited[after.start : after.end] == body.raw[before.start : before.end]


def test_compat_17_numbers_are_not_reformatted() -> None:
    """What a number looks like is the client's choice: 1.0, 1e2 and 30 digits go on as they came."""
    raw = b'{"a": 1.0, "b": 1e2, "c": 123456789012345678901234567890, "d": -0.0, "drop": 1}'
    edited = parse_object(raw, max_depth=64).edit({}, ["drop"])
    assert edited == b'{"a": 1.0,"b": 1e2,"c": 123456789012345678901234567890,"d": -0.0}'


@given(OBJECTS, LAYOUTS)
def test_what_was_put_away_is_read_again(value: dict[str, Any], layout: dict[str, Any]) -> None:
    """Members and spans are the same as before, whichever reading found them."""
    body = parse_object(json.dumps(value, **layout).encode(), max_depth=64)
    fields, members = body.fields, dict(body.members)
    body.put_away()
    assert body.fields == fields
    assert body.members == members


@pytest.mark.parametrize("space", ["", " ", "\t", "\n", "\r", " \n "])
def test_a_key_that_occurs_twice_is_seen_whatever_stands_before_its_colon(space: str) -> None:
    """The quick reading counts keys; white space may stand between a key and its colon."""
    raw = f'{{"a"{space}: {{"b":1}}, "c":2, "a":3}}'.encode()
    assert "occurs twice" in refusal(raw).message
    assert parse_object(raw.replace(b'"a":3', b'"d":3'), max_depth=64).fields == {"a": {"b": 1}, "c": 2, "d": 3}


def test_an_edit_of_nothing_is_the_same_object() -> None:
    """No copy of a large body where nothing changes."""
    raw = b'{"a": 1}'
    assert parse_object(raw, max_depth=64).edit({}, ["absent"]) is raw


def test_spans_are_bytes_also_beyond_ascii() -> None:
    """Offsets count UTF-8 bytes, whatever stands before a member."""
    body = parse_object('{"é": "日本語", "x": "€😀", "n": 1}'.encode(), max_depth=64)
    assert [body.text_of(name) for name in body.members] == ['"日本語"', '"€😀"', "1"]


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "empty"),
        (b" \n ", "empty"),
        (b"[]", "not a JSON object"),
        (b'"x"', "not a JSON object"),
        (b"{", "property name"),
        (b'{"a"', "property name"),
        (b'{"a" 1}', "':'"),
        (b'{"a":}', "Expecting value at line 1, column 6"),
        (b'{"a":1', "',' or '}'"),
        (b'{"a":1,}', "property name"),
        (b"{'a':1}", "property name"),
        (b'{"a":tru}', "Expecting value"),
        (b'{"a":01}', "',' or '}'"),
        (b'{"a":1} {}', "follows the object"),
        (b'{"a":"\n"}', "Invalid control character"),
        (b'{"a":"\\x"}', "Invalid \\escape"),
        (b'{"\\x":1}', "Invalid \\escape"),
        (b'\xef\xbb\xbf{"a":1}', "byte order mark"),
        (b'{"a":"\xff"}', "UTF-8 at byte 6"),
        (b'{"a":"\xed\xa0\x80"}', "UTF-8"),
        (b'{"a":"\\ud83d"}', "surrogate"),
        (b'{"a":[{"\\uDe00":1}]}', "surrogate"),
        (b'{"a":' + b"9" * 5000 + b"}", "too many digits"),
    ],
)
def test_what_is_not_one_json_object_is_a_400(raw: bytes, said: str) -> None:
    """Each mistake is answered with its place or its name."""
    error = refusal(raw)
    assert error.status == 400
    assert said in error.message


@pytest.mark.parametrize("escaped", [b"\\ud83d\\ude00", b"\\\\ud800"])
def test_escaped_pairs_and_escaped_backslashes_are_fine(escaped: bytes) -> None:
    """A surrogate pair is a character, and a backslash before u is text."""
    assert parse_object(b'{"a":"' + escaped + b'"}', max_depth=64).text_of("a") == f'"{escaped.decode()}"'


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        (b'{"model":1,"model":2}', "model"),
        (b'{"model":1,"mod\\u0065l":2}', "model"),
        (b'{"a":[{"b":1,"c":{"d":1,"d":1}}]}', "d"),
    ],
)
def test_compat_17_duplicate_keys_are_refused_by_name(raw: bytes, name: str) -> None:
    """Two parsers may disagree which of two equal keys counts; so neither does, at any level."""
    error = refusal(raw)
    assert (error.status, error.param) == (400, name)


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_compat_17_nan_is_refused(constant: str) -> None:
    """Python's parser would take them; JSON does not know them."""
    assert constant in refusal(f'{{"a": [{constant}]}}'.encode()).message


def nested(levels: int) -> bytes:
    return b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


def test_depth_is_bounded_exactly() -> None:
    """64 levels pass, 65 do not; brackets in strings and side by side do not count."""
    assert parse_object(nested(64), max_depth=64).fields
    assert "64 levels" in refusal(nested(65)).message
    assert parse_object(b'{"a":"' + b"[" * 100 + b'","b":[' + b"{}," * 100 + b"[]]}", max_depth=3).fields
    assert "2 levels" in refusal(b'{"a":[[' + b"]]}", max_depth=2).message


@pytest.mark.parametrize(
    "bomb", [b'{"a":' + b"[" * 1_000_000, b'{"a":' * 200_000, nested(500_000)], ids=["open", "objects", "closed"]
)
def test_a_depth_bomb_is_refused(bomb: bytes) -> None:
    """A million brackets neither crash the interpreter nor become a 500."""
    assert "nested deeper" in refusal(bomb).message


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:\\u0de8 1eNa.-', max_size=40).map(str.encode))
def test_no_bytes_are_worse_than_a_400(raw: bytes) -> None:
    """Whatever comes in: an object, or an ApiError that says 400."""
    try:
        fields = parse_object(raw, max_depth=64).fields
    except ApiError as error:
        assert error.status == 400  # noqa: PT017 - both ways are allowed
    else:
        assert fields == json.loads(raw)
