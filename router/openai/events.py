"""One server-sent event: its name and its data, read as the WHATWG rules say and written in the one form every client reads."""

from typing import Any, Final, NamedTuple

import msgspec

DONE: Final = b"[DONE]"
# As an integer: `b"\r" in raw` makes CPython raise and clear an error before it looks.
_RETURN: Final = 0x0D


class Event(NamedTuple):
    """`data` None: the event carries none (a comment, a bare id) and means nothing. `plain`: it is written as we would write it."""

    name: bytes
    data: bytes | None
    plain: bool


def read_event(raw: bytes) -> Event:
    """Any line ends, any fields, comments, several data lines; with or without the blank line that ends it."""
    if raw.startswith(b"data: ") and raw.endswith(b"\n\n") and raw.find(b"\n") == len(raw) - 2 and _RETURN not in raw:
        return Event(b"", raw[6:-2], plain=True)
    name = b""
    data: list[bytes] = []
    for line in raw.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        field, _, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
    return Event(name, b"\n".join(data) if data else None, plain=False)


def write_event(data: bytes) -> bytes:
    """One `data:` line and the blank line that ends it; no carriage returns."""
    return b"data: " + data + b"\n\n"


def write_json(value: Any) -> bytes:
    return write_event(msgspec.json.encode(value))
