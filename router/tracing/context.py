"""W3C Trace Context: what a client's `traceparent` and `tracestate` say, and what an engine is told. Pure.

What is malformed counts as not sent, as the specification asks; nothing of it is passed on.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"

# Later versions may add fields behind a dash; `ff` is no version.
_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KEY = r"(?:[a-z][a-z0-9_*/-]{0,255}|[a-z0-9][a-z0-9_*/-]{0,240}@[a-z][a-z0-9_*/-]{0,13})"
_MEMBER = re.compile(_KEY + r"=[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]")
_MAX_MEMBERS: Final = 32
_MAX_STATE_CHARS: Final = 512  # as much as everybody must pass on
_MAX_PARENT_CHARS: Final = 256  # of versions to come
_SAMPLED: Final = 0x01


@dataclass(frozen=True, slots=True)
class Parent:
    """The span that a request is part of, elsewhere."""

    trace_id: int
    span_id: int
    sampled: bool
    state: str  # `tracestate` as it may be passed on; may be empty


def parent_of(headers: Mapping[str, str]) -> Parent | None:
    """What the client says, if it is well-formed. `headers` has lower-case names."""
    text = headers.get(TRACEPARENT)
    if text is None or len(text) > _MAX_PARENT_CHARS or (found := _PARENT.fullmatch(text.strip())) is None:
        return None
    version, trace_hex, span_hex, flags, more = found.groups()
    trace_id, span_id = int(trace_hex, 16), int(span_hex, 16)
    if not trace_id or not span_id or (more is not None and version == "00"):
        return None
    return Parent(trace_id, span_id, bool(int(flags, 16) & _SAMPLED), state_of(headers.get(TRACESTATE, "")))


def state_of(text: str) -> str:
    """Its members, the first ones where they are too many; empty where one of them is malformed."""
    members = [member for part in text.split(",") if (member := part.strip(" \t"))]
    keys = {member.partition("=")[0] for member in members}
    if len(members) > _MAX_MEMBERS or len(keys) < len(members) or not all(map(_MEMBER.fullmatch, members)):
        return ""
    while members and sum(map(len, members)) + len(members) - 1 > _MAX_STATE_CHARS:
        members.pop()
    return ",".join(members)


def traceparent(trace_id: int, span_id: int, *, sampled: bool) -> str:
    """For whoever is asked next."""
    return f"00-{trace_id:032x}-{span_id:016x}-{'01' if sampled else '00'}"
