"""A client that asks for one answer over a connection of its own and says everything that is wrong with it."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.support.patience import PATIENCE_S
from tests.support.raw_http import RawClient, post
from tests.support.stream_check import expected_answer, faults_of_document, faults_of_stream

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

AtToken = Callable[[int], Awaitable[None]]


@dataclass(slots=True)
class Told:
    """What a client was told. `faults` empty: one unbroken, complete, exactly equal answer."""

    status: int
    headers: dict[str, str]
    raw: bytes = b""
    faults: list[str] = field(default_factory=list)
    asked_s: float = 0.0  # on the loop's clock, as is
    arrivals_s: list[float] = field(default_factory=list)  # of each piece with an event in it

    @property
    def ttft_s(self) -> float:
        return self.arrivals_s[0] - self.asked_s if self.arrivals_s else 0.0

    def longest_gap_s(self, since_s: float, until_s: float) -> float:
        """Of those that began in this time."""
        gaps = (after - before for before, after in pairwise(self.arrivals_s) if since_s <= before < until_s)
        return max(gaps, default=0.0)


def chat_body(prompt: str, tokens: int, **more: Any) -> dict[str, Any]:
    """A streamed chat of exactly so many tokens, its usage asked for."""
    options = {"include_usage": True}
    messages = [{"role": "user", "content": prompt}]
    base = {"model": "sim-8b", "messages": messages, "max_tokens": tokens, "ignore_eos": True}
    return {**base, "stream": True, "stream_options": options, **more}


def plain_body(prompt: str, tokens: int, **more: Any) -> dict[str, Any]:
    """The same as a plain completion."""
    body = chat_body(prompt, tokens, **more)
    del body["messages"]
    return {**body, "prompt": prompt}


def document_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same request, its answer wanted in one piece."""
    return {name: value for name, value in body.items() if name not in {"stream", "stream_options"}}


async def told(url: str, body: Mapping[str, Any], *, request_id: str = "", at_token: AtToken | None = None) -> Told:
    """Ask and check. `at_token` is awaited with the number of events that have come, before more is read; several may come at once."""
    path = CHAT if "messages" in body else COMPLETIONS
    headers = (f"x-request-id: {request_id}",) if request_id else ()
    async with asyncio.timeout(PATIENCE_S):
        client = await RawClient.connect(url)
        try:
            asked_s = asyncio.get_running_loop().time()
            await client.send(post(path, dict(body), *headers))
            answer = await _read(client, body, at_token)
            answer.asked_s = asked_s
            return answer
        finally:
            await client.close()


async def _read(client: RawClient, body: Mapping[str, Any], at_token: AtToken | None) -> Told:
    try:
        status, headers = await client.head()
    except (asyncio.IncompleteReadError, ConnectionError, TimeoutError) as error:
        return Told(0, {}, faults=[f"no answer: {error!r}"])
    answer = Told(status, headers)
    loop, raw = asyncio.get_running_loop(), bytearray()
    if headers.get("transfer-encoding") != "chunked":
        length = int(headers.get("content-length", "0"))
        raw += await client.exactly(length)
    else:
        try:
            while part := await client.chunk():
                raw += part
                if b"data:" in part:
                    answer.arrivals_s.append(loop.time())
                    if at_token is not None:
                        await at_token(raw.count(b"data: "))
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            answer.faults.append(f"the connection broke: {error!r}")
        except TimeoutError:
            answer.faults.append("the stream hangs")
    answer.raw = bytes(raw)
    judge = faults_of_stream if body.get("stream") else faults_of_document
    answer.faults += judge(expected_answer(body), status, answer.raw)
    return answer
