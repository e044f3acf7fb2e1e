"""Finds the events in a server-sent event stream, however its bytes were cut. Pure: bytes in, whole events out.

Follows the WHATWG event stream grammar for line ends, comments and `data` fields. Decides nothing about what the events say.
"""

from typing import Final

from backends.backend import StreamCut

# The longest event that is held: a chunk with 20 logprobs a token stays below 100 kB, a whole embedding batch below 2 MB.
_MAX_EVENT_BYTES: Final = 4 * 2**20
_NEWLINE: Final = 0x0A
_RETURN: Final = 0x0D


class EventTooLarge(StreamCut):
    """An event longer than the splitter will hold; the stream is of no more use."""


class SseSplitter:
    """Cuts a byte stream into events; each comes out once, whole, its line ends all LF, closed by one blank line."""

    __slots__ = ("_after_cr", "_max_event_bytes", "_partial")

    def __init__(self, *, max_event_bytes: int = _MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._partial = bytearray()
        self._after_cr = False

    @property
    def rest(self) -> bytes:
        """What came after the last whole event."""
        return bytes(self._partial)

    @property
    def idle(self) -> bool:
        """Between two events: what comes next begins one."""
        return not (self._partial or self._after_cr)

    def feed(self, data: bytes) -> list[bytes]:
        """Whole events that `data` completes. Raises EventTooLarge; do not feed it again then."""
        if self._after_cr or _RETURN in data:
            data = self._with_lf(data)
        # An engine sends one event a write and it mostly arrives as one: no copy then.
        if (
            not self._partial
            and 2 < len(data) <= self._max_event_bytes
            and data.find(b"\n\n") == len(data) - 2
            and data[0] != _NEWLINE
        ):
            return [data]
        return self._split(data)

    def _with_lf(self, data: bytes) -> bytes:
        """CR and CR LF become LF at once; an LF that follows a CR of the last feed belongs to it."""
        if not data:
            return data
        if self._after_cr and data[0] == _NEWLINE:
            data = data[1:]
        self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _split(self, data: bytes) -> list[bytes]:
        partial = self._partial
        scanned = max(len(partial) - 1, 0)  # a blank line may straddle the seam
        partial += data
        events: list[bytes] = []
        start = 0
        while (end := partial.find(b"\n\n", max(start, scanned))) >= 0:
            event = bytes(partial[start:end]).lstrip(b"\n")  # surplus blank lines mean nothing
            self._check(len(event) + 2)
            if event:
                events.append(event + b"\n\n")
            start = end + 2
        del partial[:start]
        while partial.startswith(b"\n"):
            del partial[:1]
        self._check(len(partial))
        return events

    def _check(self, size: int) -> None:
        if size > self._max_event_bytes:
            raise EventTooLarge(f"an event exceeds {self._max_event_bytes} bytes")


def event_data(event: bytes) -> bytes | None:
    """The `data` of one event that a splitter gave out, lines joined by LF; None where it has none (a comment)."""
    if event.startswith(b"data: ") and event.find(b"\n") == len(event) - 2:
        return event[6:-2]
    lines = [line[5:] for line in event.split(b"\n") if line.startswith(b"data:") or line == b"data"]
    if not lines:
        return None
    return b"\n".join(line.removeprefix(b" ") for line in lines)
