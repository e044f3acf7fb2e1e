"""A request body, parsed once: the values of its members and where each stands in the bytes, so that edits are splices.

Refuses what could be read in two ways further on (duplicate keys, NaN, lone surrogates) or would hurt a parser (depth, huge
integers). Does not know any OpenAI field. A member that is not edited keeps its exact bytes: `1.0` stays `1.0`.
"""

import json
import re
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from router.openai.errors import ApiError, invalid_request

_SPACE: Final = re.compile(r"[ \t\n\r]*")
_KEY: Final = re.compile(r'[ \t\n\r]*+"((?:[^"\\\x00-\x1f]|\\.)*+)"[ \t\n\r]*+:[ \t\n\r]*+')
_NEXT: Final = re.compile(r"[ \t\n\r]*+([,}])")
# A cheap hint that a `\ud800`-like escape may stand alone; whether it does is looked at only then.
_KEY_END: Final = re.compile(rb'"[ \t\n\r]*+:')
_SURROGATE_ESCAPE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


class Member(NamedTuple):
    """Byte offsets of one top-level member: its key's opening quote, its value's first byte, one past its value."""

    start: int
    value: int
    end: int


class Body:
    """A JSON object: its bytes, its parsed members, and, for whoever edits, the bytes each member stands on."""

    __slots__ = ("_fields", "_members", "raw")

    def __init__(self, raw: bytes, fields: Mapping[str, Any]) -> None:
        self.raw = raw
        self._fields: Mapping[str, Any] | None = fields
        self._members: Mapping[str, Member] | None = None

    @property
    def fields(self) -> Mapping[str, Any]:
        """Its members, parsed; parsed anew if they were `put_away`."""
        if self._fields is None:
            self._fields = _read_plain(self.raw, self.raw.count(b"{")) or _read(self.raw.decode())
        return self._fields

    def put_away(self) -> None:
        """Keep the bytes alone: a long prompt is held once, not twice, while its answer streams."""
        self._fields = self._members = None

    @property
    def members(self) -> Mapping[str, Member]:
        """Found when first asked for: most bodies go on as they came."""
        if self._members is None:
            text = self.raw.decode()
            _, spans = _read_members(text)
            self._members = spans if text.isascii() else _in_bytes(text, spans)
        return self._members

    def text_of(self, name: str) -> str:
        """The JSON text of one member's value, as the client wrote it."""
        member = self.members[name]
        return self.raw[member.value : member.end].decode()

    def edit(self, set_: Mapping[str, bytes], drop: Collection[str] = ()) -> bytes:
        """The body with the members of `set_` (name -> JSON) replaced or added, and those of `drop` gone.

        The rest keeps order and bytes; only whitespace between members may be lost. Nothing to change returns `raw` itself.
        """
        fields = self.fields
        if not any(name in fields for name in drop):
            if not set_:
                return self.raw
            if fields and not any(name in fields for name in set_):
                added = [json.dumps(name).encode() + b":" + value for name, value in set_.items()]
                return b"".join((self.raw[: self.raw.rindex(b"}")], b",", b",".join(added), b"}"))
        view = memoryview(self.raw)
        parts: list[bytes | memoryview] = []
        for name, member in self.members.items():
            if name in set_:
                parts.append(self.raw[member.start : member.value] + set_[name])
            elif name not in drop:
                parts.append(view[member.start : member.end])
        parts += [json.dumps(name).encode() + b":" + value for name, value in set_.items() if name not in self.members]
        return b"".join((b"{", b",".join(parts), b"}"))


def parse_object(raw: bytes, *, max_depth: int) -> Body:
    """Raises an ApiError (400) that says where and why, for anything but one well-formed JSON object."""
    braces = raw.count(b"{")
    fields = _read_plain(raw, braces)
    if fields is None:
        fields = _read_warily(raw, max_depth)
    if braces + raw.count(b"[") > max_depth and _deeper_than(fields, max_depth):
        raise _too_deep(max_depth)
    if raw.find(b"\\u") >= 0 and _SURROGATE_ESCAPE.search(raw) and not _encodable(fields):
        raise invalid_request(
            "The request body has a lone UTF-16 surrogate (such as \\ud800); send whole characters, or replace it."
        )
    return Body(raw, fields)


def _read_plain(raw: bytes, braces: int) -> dict[str, Any] | None:
    """The fast reading, of bodies in which no key can occur twice; None: it cannot tell, or something is wrong.

    Each key is followed by a quote and a colon, spaces perhaps between them, so that as many keys as finds are all there are. Text that
    looks alike adds to the finds only: such a body is read warily.
    """
    try:
        fields = msgspec.json.decode(raw)
    except (ValueError, RecursionError):
        return None
    if type(fields) is not dict:
        return None
    finds = raw.count(b'":')
    if raw.count(b":") != finds:  # some may have white space before them
        finds = len(_KEY_END.findall(raw))
    return fields if _count_keys(fields, braces) == finds else None


def _count_keys(fields: dict[str, Any], braces: int) -> int:
    """Of all objects. `braces`: at least as many as there are objects."""
    total = 0
    level: list[Any] = [fields]
    while level:
        container = level.pop()
        if type(container) is dict:
            total += len(container)
            braces -= 1
        if braces == 0:
            break
        inside = container.values() if type(container) is dict else container
        level += [child for child in inside if type(child) is dict or type(child) is list]
    return total


def _read_warily(raw: bytes, max_depth: int) -> dict[str, Any]:
    """The reading that sees keys that occur twice, and says what is wrong and where."""
    text = _decode(raw)
    try:
        return _read(text)
    except json.JSONDecodeError as e:
        raise _malformed(text, e.msg, e.pos) from None
    except RecursionError:
        raise _too_deep(max_depth) from None
    except ValueError as why:  # int() refuses more digits than sys.get_int_max_str_digits(): quadratic time
        raise invalid_request("An integer in the request body has too many digits; shorten it.") from why


def _decode(raw: bytes) -> str:
    if raw.startswith(b"\xef\xbb\xbf"):
        raise invalid_request("The request body starts with a byte order mark; send plain UTF-8 without it.")
    try:
        return raw.decode()
    except UnicodeDecodeError as e:
        raise invalid_request(f"The request body is not valid UTF-8 at byte {e.start}; encode it as UTF-8.") from None


def _read(text: str) -> dict[str, Any]:
    """One pass of the C scanner; where that fails, the reading by hand says better why."""
    try:
        fields = _VALUE.decode(text)
    except json.JSONDecodeError:
        fields = None
    return fields if type(fields) is dict else _read_members(text)[0]


def _read_members(text: str) -> tuple[dict[str, Any], dict[str, Member]]:
    """The top level by hand, for the spans; every value by the standard library's C scanner."""
    fields: dict[str, Any] = {}
    members: dict[str, Member] = {}
    at = _skip(text, 0)
    if at == len(text):
        raise invalid_request("The request body is empty; send a JSON object.")
    if text[at] != "{":
        raise invalid_request('The request body is not a JSON object; send one, such as {"model": ...}.')
    at = _skip(text, at + 1)
    more = text[at : at + 1] != "}"
    at += not more
    while more:
        key = _KEY.match(text, at)
        if key is None:
            raise json.JSONDecodeError("expecting a property name in double quotes and ':'", text, _skip(text, at))
        name = key[1]
        if "\\" in name:
            name = _VALUE.decode(f'"{name}"')
        if name in fields:
            raise _duplicate(name)
        value = key.end()
        fields[name], at = _VALUE.raw_decode(text, value)
        members[name] = Member(key.start(1) - 1, value, at)
        end = _NEXT.match(text, at)
        if end is None:
            raise json.JSONDecodeError("expecting ',' or '}'", text, _skip(text, at))
        more = end[1] == ","
        at = end.end()
    if _skip(text, at) != len(text):
        raise json.JSONDecodeError("something follows the object", text, _skip(text, at))
    return fields, members


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None  # the pattern matches the empty string
    return match.end()


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        raise _duplicate(next(name for name, _ in pairs if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
    return value


def _no_constant(name: str) -> Any:
    raise invalid_request(f"The request body has {name}, which is not JSON; send a number or null.")


_VALUE: Final = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def _deeper_than(fields: dict[str, Any], max_depth: int) -> bool:
    """Level by level, no recursion; only asked when there are more brackets than levels allowed."""
    level: list[Any] = [fields]
    for _ in range(max_depth):
        level = [
            child
            for container in level
            for child in (container.values() if type(container) is dict else container)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return False
    return True


def _encodable(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _in_bytes(text: str, spans: Mapping[str, Member]) -> dict[str, Member]:
    """Character offsets -> byte offsets, in one pass over the text."""
    at = done = 0
    members: dict[str, Member] = {}
    for name, span in spans.items():
        offsets = []
        for char in span:
            at += len(text[done:char].encode())
            done = char
            offsets.append(at)
        members[name] = Member(*offsets)
    return members


def _malformed(text: str, what: str, at: int) -> ApiError:
    line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
    return invalid_request(
        f"The request body is not valid JSON: {what} at line {line}, column {column}. Correct it and send it again."
    )


def _duplicate(name: str) -> ApiError:
    shown = name if len(name) <= 64 else name[:64] + "..."
    return invalid_request(f"The key {json.dumps(shown)} occurs twice in one object; keep one of them.", param=shown)


def _too_deep(max_depth: int) -> ApiError:
    return invalid_request(f"The request body is nested deeper than {max_depth} levels; flatten it.")
