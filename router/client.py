"""The caller's side of one exchange: start, write, end. Plain calls, because a write never waits.

What the client's socket does not take is kept, and `full` says when that is enough: whoever feeds the client stops then and asks
to be told of `room`. Two kinds exist: `router.hot_cycle` on a connection of its own, `router.asgi_client` behind any ASGI server.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Final

Headers = Sequence[tuple[bytes, bytes]]

# Proxies must neither cache, compress nor buffer a token stream (docs/api.md, "Streaming").
SSE_HEADERS: Final[Headers] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)
JSON_HEADERS: Final[Headers] = ((b"content-type", b"application/json"),)


class ClientGone(Exception):
    """The client hung up, or stopped reading for longer than it may; nothing more can be said to it."""


class Client(ABC):
    """One exchange. Bytes go out in the order of the calls; to a client that has gone they go nowhere."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.started = False
        self.ended = False
        self.full = False  # more is kept for the client than it should be
        self._resume: Callable[[], None] | None = None

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """A body of unknown length follows, unless `headers` tell its length."""
        assert not self.started, "a response starts once"
        self.started = True
        self._head(status, [(b"x-request-id", self.request_id.encode("ascii")), *headers])

    def write(self, data: bytes) -> None:
        if data and not self.ended:
            self._body(data)

    @property
    def takes_frames(self) -> bool:
        """Whether what an engine sent may go to it with the engine's own framing: its answer has begun, in chunks of HTTP/1.1."""
        return False

    def write_frames(self, data: bytes) -> None:
        """Whole chunks, each with its size before it, of who `takes_frames`."""
        raise NotImplementedError

    def end(self, data: bytes = b"") -> None:
        if not self.ended:
            self.ended = True
            self._last(data)

    def respond(self, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = JSON_HEADERS) -> None:
        """A whole answer at once."""
        self.start(status, [*headers, (b"content-length", b"%d" % len(body))])
        self.end(body)

    def when_room(self, resume: Callable[[], None]) -> None:
        """Called once, as soon as `full` is false again. One feeder at a time."""
        self._resume = resume

    def _room(self) -> None:
        self.full = False
        resume, self._resume = self._resume, None
        if resume is not None:
            resume()

    @abstractmethod
    def _head(self, status: int, headers: Headers) -> None: ...

    @abstractmethod
    def _body(self, data: bytes) -> None: ...

    @abstractmethod
    def _last(self, data: bytes) -> None: ...
