"""Drives an ASGI application by hand: streams can be watched chunk by chunk and hung up on (httpx's ASGITransport cannot)."""

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Call:
    """One request. `chunks` are (loop time, bytes) as the application wrote them."""

    app: Any
    path: str
    body: bytes = b""
    method: str = "POST"
    headers: Iterable[tuple[str, str]] = ()
    body_parts: list[bytes] | None = None  # sent one receive() each; with `endless` the body never ends
    endless: bool = False
    slow_client: asyncio.Event | None = None  # send() blocks until it is set: a client that does not read
    status: int | None = None
    response_headers: list[tuple[str, str]] = field(default_factory=list)
    chunks: list[tuple[float, bytes]] = field(default_factory=list)
    complete: bool = False

    def __post_init__(self) -> None:
        self._gone = asyncio.Event()
        self._parts = list(self.body_parts) if self.body_parts is not None else [self.body]
        self._wrote = asyncio.Condition()

    async def run(self) -> "Call":
        await self.app(self._scope(), self._receive, self._send)
        return self

    def hang_up(self) -> None:
        self._gone.set()

    @property
    def data(self) -> bytes:
        return b"".join(chunk for _, chunk in self.chunks)

    def json(self) -> Any:
        return json.loads(self.data)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.response_headers if key == name), None)

    def events(self) -> list[str]:
        """The `data:` payloads of an SSE answer, comments left out."""
        return [line[6:] for line in self.data.decode().split("\n") if line.startswith("data: ")]

    def text(self) -> str:
        """The concatenated content of choice 0, chat or completion."""
        chunks = [json.loads(payload) for payload in self.events() if payload != "[DONE]"]
        choices = [choice for chunk in chunks for choice in chunk.get("choices", []) if choice["index"] == 0]
        return "".join(c.get("delta", c).get("content") or c.get("text") or "" for c in choices)

    async def until_chunks(self, count: int) -> None:
        async with self._wrote:
            await self._wrote.wait_for(lambda: len(self.chunks) >= count or self.complete)

    def _scope(self) -> dict[str, Any]:
        path, _, query = self.path.partition("?")
        return {
            "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": self.method,
            "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": query.encode(), "root_path": "",
            "headers": [(k.lower().encode(), v.encode()) for k, v in self.headers],
            "client": ("127.0.0.1", 50000), "server": ("127.0.0.1", 8080), "state": {},
        }  # fmt: skip

    async def _receive(self) -> dict[str, Any]:
        if self._parts:
            part = self._parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._parts) or self.endless}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        if self.slow_client is not None and message["type"] == "http.response.body":
            await self.slow_client.wait()
        if self._gone.is_set():
            return
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.response_headers = [(k.decode(), v.decode()) for k, v in message["headers"]]
            return
        async with self._wrote:
            if message.get("body"):
                self.chunks.append((asyncio.get_running_loop().time(), message["body"]))
            if not message.get("more_body", False):
                self.complete = True
            self._wrote.notify_all()


def post(app: Any, path: str, payload: object, **options: Any) -> Call:
    """A JSON POST, ready to run."""
    return Call(app, path, json.dumps(payload).encode(), **options)


def chat(content: str = "Hello", *, model: str = "m", **fields: Any) -> dict[str, Any]:
    """A chat body."""
    return {"model": model, "messages": [{"role": "user", "content": content}], **fields}
