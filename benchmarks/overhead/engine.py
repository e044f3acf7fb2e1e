"""A fake engine that costs next to nothing: answers made beforehand, streams paced by timers, no model, no scheduling.

A process of its own: `python -m benchmarks.overhead.engine --port 9000 --chunks 100 --gap-ms 20`.
"""

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import httptools
import uvloop

from benchmarks.overhead.wire import MODEL, PATH, answer, events


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """Every answer the engine has, as bytes of HTTP."""

    document: bytes
    models: bytes
    healthy: bytes
    missing: bytes
    stream_head: bytes
    stream: Sequence[bytes]  # a write each
    stream_with_usage: Sequence[bytes]
    gap_s: float


def make_answers(chunks: int, gap_s: float) -> Answers:
    models = {"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 32_768}]}
    return Answers(
        document=_response(200, answer()),
        models=_response(200, json.dumps(models).encode()),
        healthy=_response(200, b""),
        missing=_response(404, b"{}"),
        stream_head=b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n",
        stream=_writes(events(chunks)),
        stream_with_usage=_writes(events(chunks, usage=True)),
        gap_s=gap_s,
    )


class EngineProtocol(asyncio.Protocol):
    """One connection; requests one after another."""

    def __init__(self, answers: Answers, loop: asyncio.AbstractEventLoop) -> None:
        self._answers = answers
        self._loop = loop
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._url = b""
        self._body = bytearray()
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.close()

    # httptools' callbacks

    def on_url(self, url: bytes) -> None:
        self._url = url
        self._body.clear()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        answers = self._answers
        if self._url == PATH.encode():
            if b'"stream":true' in self._body.replace(b'": ', b'":'):
                self._stream(answers.stream_with_usage if b"include_usage" in self._body else answers.stream)
            else:
                self._transport.write(answers.document)
        elif self._url == b"/v1/models":
            self._transport.write(answers.models)
        else:
            self._transport.write(answers.healthy if self._url == b"/health" else answers.missing)

    def _stream(self, writes: Sequence[bytes]) -> None:
        self._transport.write(self._answers.stream_head)
        self._send_next(writes, 0, self._loop.time())

    def _send_next(self, writes: Sequence[bytes], index: int, start_s: float) -> None:
        """Events at fixed times from the start, so that lateness does not add up; what follows the last chunk comes with it."""
        rest = len(self._answers.stream) - 2  # the last content chunk
        self._transport.write(b"".join(writes[index:]) if index == rest else writes[index])
        if index < rest:
            due_s = start_s + (index + 1) * self._answers.gap_s
            self._timer = self._loop.call_at(due_s, self._send_next, writes, index + 1, start_s)


def _response(status: int, body: bytes) -> bytes:
    phrase = {200: "OK", 404: "Not Found"}[status]
    head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _writes(made: Sequence[bytes]) -> list[bytes]:
    frames = [f"{len(event):x}\r\n".encode() + event + b"\r\n" for event in made]
    frames[-1] += b"0\r\n\r\n"
    return frames


async def _serve(port: int, answers: Answers) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: EngineProtocol(answers, loop), "127.0.0.1", port, backlog=4096)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead.engine", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--chunks", type=int, default=100, help="content chunks a stream  [default: %(default)s]")
    parser.add_argument("--gap-ms", type=float, default=20.0, help="between chunks  [default: %(default)s]")
    said = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(said.port, make_answers(said.chunks, said.gap_ms / 1000)))


if __name__ == "__main__":
    main()
