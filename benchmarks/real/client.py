"""Sends a workload at its times and looks at each answer's first token and its end.

Answers are not parsed but for their last bytes: reading 40,000 events as JSON would take the engines' share of the cores.
"""

import asyncio
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.real.workload import Ask

_PATIENCE_S: Final = 900.0  # of one answer: nobody may be cut off, whatever the policy makes it wait
_TAIL_BYTES: Final = 4096  # the usage chunk and [DONE]
_USAGE = re.compile(rb'"prompt_tokens": ?(\d+).*?"completion_tokens": ?(\d+)')
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer; times on the loop's clock. Whole if it was 200, said its usage and ended with [DONE]."""

    due_s: float
    first_s: float | None = None
    end_s: float
    status: int | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None  # why it is not whole

    @property
    def ttft_s(self) -> float | None:
        """From when it was due, not from when it was sent: a client that is late must not hide a wait."""
        return None if self.first_s is None else self.first_s - self.due_s

    @property
    def tpot_s(self) -> float | None:
        if self.first_s is None or self.output_tokens is None or self.output_tokens < 2:
            return None
        return (self.end_s - self.first_s) / (self.output_tokens - 1)


async def send_all(port: int, asks: Sequence[Ask]) -> list[Answer]:
    """Each at its time, over a connection of its own, to its end."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    async with asyncio.TaskGroup() as tasks:
        sent = [tasks.create_task(_one(port, ask, began_s + ask.at_s)) for ask in asks]
    return [task.result() for task in sent]


async def _one(port: int, ask: Ask, due_s: float) -> Answer:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(due_s - loop.time())
    answer = _Reading()
    error: str | None = None
    try:
        async with asyncio.timeout(_PATIENCE_S):
            await answer.exchange(port, _request(port, ask))
    except TimeoutError:
        error = "no end"
    except OSError as failure:
        error = type(failure).__name__
    return answer.result(due_s, loop.time(), error)


def _request(port: int, ask: Ask) -> bytes:
    body = json.dumps(ask.body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    return head.encode() + body


class _Reading:
    """An answer while it comes in."""

    def __init__(self) -> None:
        self._head = b""
        self._tail = b""
        self._first_s: float | None = None

    async def exchange(self, port: int, request: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(request)
            loop = asyncio.get_running_loop()
            while data := await reader.read(65536):
                self._head = self._head or data
                self._tail = (self._tail + data)[-_TAIL_BYTES:]
                if self._first_s is None and b"data: {" in self._tail:  # not a keep-alive comment
                    self._first_s = loop.time()
        finally:
            writer.close()

    def result(self, due_s: float, end_s: float, error: str | None) -> Answer:
        status = _STATUS.match(self._head)
        usage = list(_USAGE.finditer(self._tail))
        if error is None:
            error = self._wrong(status, usage)
        return Answer(
            due_s=due_s,
            first_s=self._first_s,
            end_s=end_s,
            status=int(status[1]) if status else None,
            prompt_tokens=int(usage[-1][1]) if usage else None,
            output_tokens=int(usage[-1][2]) if usage else None,
            error=error,
        )

    def _wrong(self, status: re.Match[bytes] | None, usage: Sequence[re.Match[bytes]]) -> str | None:
        if status is None:
            return "no answer"
        if status[1] != b"200":
            return f"HTTP {status[1].decode()}"
        return None if usage and b"data: [DONE]" in self._tail else "cut"
