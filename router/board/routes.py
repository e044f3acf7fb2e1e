"""`GET /admin/live` and `GET /admin/fleet`: the board's document as a stream of events, and once (docs/top.md).

An ASGI response of our own: one client is one loop that waits for the next event and sends it; who leaves is gone at once, who does
not read is cut off as on the hot path.
"""

import asyncio
from typing import Any, Final

import msgspec
from fastapi import APIRouter, Response
from starlette.types import Receive, Scope, Send

from router.board.feed import Viewer
from router.gateway import Gateway

KEEP_ALIVE: Final = b": keep-alive\n\n"
_HEADERS: Final = {
    "cache-control": "no-store",
    "x-accel-buffering": "no",  # nginx would keep events until it has some kilobytes
}
_STREAM: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "Events `live`, a second apart: the whole document first, then what has changed",
        "content": {"text/event-stream": {"schema": {"type": "string"}}},
    }
}
_DOCUMENT: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "The whole document",
        "content": {"application/json": {"schema": {"type": "object", "additionalProperties": True}}},
    }
}


def add_board(admin: APIRouter, gateway: Gateway) -> None:
    """The routes."""

    @admin.get("/live", response_model=None, responses=_STREAM)
    async def live() -> Response:
        """The fleet as it is, again each second: replicas, queue, latency, money, the last placements."""
        server = gateway.config.server
        return LiveStream(
            gateway.board.feed.join(),
            keep_alive_s=server.keepalive_comment_s,
            write_stall_s=server.write_stall_timeout_s,
        )

    @admin.get("/fleet", response_model=None, responses=_DOCUMENT)
    async def fleet() -> Response:
        """The same, once."""
        document = msgspec.json.encode(await gateway.board.feed.document())
        return Response(document, media_type="application/json", headers={"cache-control": "no-store"})


class LiveStream(Response):
    """Events of one viewer until it leaves, does not read, or the feed is over."""

    media_type = "text/event-stream"

    def __init__(self, viewer: Viewer, *, keep_alive_s: float, write_stall_s: float) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._viewer = viewer
        self._keep_alive_s = keep_alive_s
        self._write_stall_s = write_stall_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._viewer:
            async with asyncio.TaskGroup() as tasks:
                sending = tasks.create_task(self._send_all(scope, send))
                watching = tasks.create_task(_disconnected(receive))
                await asyncio.wait((sending, watching), return_when=asyncio.FIRST_COMPLETED)
                sending.cancel()
                watching.cancel()

    async def _send_all(self, scope: Scope, send: Send) -> None:
        try:
            async with asyncio.timeout(None) as patience:
                loop = asyncio.get_running_loop()
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                while (data := await self._next()) is not None:
                    patience.reschedule(loop.time() + self._write_stall_s)
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                    patience.reschedule(None)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            # The server would wait for ever to flush what the client does not read.
            if (abort := scope.get("extensions", {}).get("penstock.abort")) is not None:
                abort()
        except OSError:
            pass  # it has gone

    async def _next(self) -> bytes | None:
        """The next event, or a comment where there has been none for so long."""
        try:
            async with asyncio.timeout(self._keep_alive_s):
                return await self._viewer.next()
        except TimeoutError:
            return KEEP_ALIVE


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
