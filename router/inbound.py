"""One hot request as it came in, whatever carried it, and what its client is told where its handler fails.

Knows neither sockets nor ASGI: `router.hot_cycle` and `router.ingress` bring requests here.
"""

import logging
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Protocol

from router.client import JSON_HEADERS, Client, ClientGone
from router.openai.errors import ApiError, internal_error, stream_error_event
from router.tenants.caller import Caller

log = logging.getLogger("penstock")

HOT_PATHS: Final = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/embeddings"})
_ID_HEADERS: Final = (b"x-request-id", b"x-client-request-id")  # the first counts before the second
# All that is read of a request's head once its body has come; whoever reads another names it here. The rest would be kept, keys and all.
_READ: Final = {
    name.encode(): name
    for name in (
        "traceparent", "tracestate", "x-stainless-read-timeout", "x-stainless-retry-count",
        "x-session-id", "x-openwebui-chat-id", "x-claude-code-session-id", "session-id", "thread-id",
    )
}  # fmt: skip
_VISIBLE_ASCII: Final = re.compile(rb"[\x21-\x7e]{1,128}")
_NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(init=False, slots=True)
class Inbound:
    """`headers` has those that anybody reads, by lower-case names; the last of each counts. `received_s`: when the head was read, on the loop's clock.

    `whole_s`: when its body was whole, on `time.perf_counter`; None: nobody noted it.
    `caller`: who asks; None: nobody is asked for a key.
    """

    request_id: str
    path: str
    body: bytes
    headers: Mapping[str, str]
    received_s: float
    whole_s: float | None
    caller: Caller | None

    def __init__(
        self,
        *,
        request_id: str,
        path: str,
        body: bytes,
        headers: Mapping[str, str],
        received_s: float,
        whole_s: float | None = None,
        caller: Caller | None = None,
    ) -> None:
        self.request_id = request_id
        self.path = path
        self.body = body
        self.headers = headers
        self.received_s = received_s
        self.whole_s = whole_s
        self.caller = caller


class Handler(Protocol):
    """What serves a hot path; raises ApiError as long as nothing was sent."""

    async def __call__(self, inbound: Inbound, client: Client) -> None: ...

    def refused(self, path: str, error: ApiError, request_id: str) -> None:
        """A request ended before the handler saw it."""


async def answer(handler: Handler, inbound: Inbound, client: Client) -> None:
    """Run the handler to the client's last byte; what it could not say is said here. Raises ClientGone, and what cancels it."""
    try:
        await handler(inbound, client)
    except ApiError as error:
        assert not client.started, "the handler says it in the stream itself"
        client.respond(error.status, error.to_body(client.request_id), [*JSON_HEADERS, *error.headers()])
    except ClientGone:
        raise
    except Exception:  # the outermost boundary: a bug of ours must look like an error, not like an end
        log.exception("request %s failed unexpectedly", client.request_id)
        _own_up(client)


def head_bytes(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Of names and values; of a request's first line and of what stands between them nothing."""
    total = 0
    for name, value in headers:
        total += len(name) + len(value)
    return total


def header_map(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    """By name; the names are lower-case already."""
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}


def read_headers(headers: Iterable[tuple[bytes, bytes]]) -> Mapping[str, str]:
    """As `Inbound.headers`."""
    return {_READ[name]: value.decode("latin-1") for name, value in headers if name in _READ} or _NO_HEADERS


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The client's own id where it is short visible ASCII, else a fresh one."""
    told = {name: value for name, value in headers if name in _ID_HEADERS and _VISIBLE_ASCII.fullmatch(value)}
    for name in _ID_HEADERS:
        if name in told:
            return told[name].decode("ascii")
    return f"req-{secrets.token_hex(12)}"


def _own_up(client: Client) -> None:
    error = internal_error()
    if not client.started:
        client.respond(error.status, error.to_body(client.request_id))
    elif not client.ended:
        client.end(stream_error_event(error, client.request_id))
