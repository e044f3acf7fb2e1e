"""What can go wrong between an engine and the gateway: each fault is an answer spoiled at one exact place."""

import json
from collections.abc import Callable

from tests.support.fault_proxy import Fault, Passage, is_token

DONE = b"data: [DONE]\n\n"
# How vLLM's server words an EngineCore that died under a stream; [DONE] follows it.
ENGINE_DEAD = (
    b'data: {"error":{"message":"EngineCore encountered an issue. See stack trace (above) for the root cause.",'
    b'"type":"InternalServerError","param":null,"code":500}}\n\n'
)
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"


def at_token(k: int, strike: Fault) -> Fault:
    """`strike` once `k` tokens have passed; 0: the role's event alone has. Beyond the last token: before the usage."""

    async def fault(passage: Passage) -> None:
        await passage.send_head()
        passed = 0
        async for event in passage.events():
            if passed >= k and b'"role":' not in event:
                await strike(passage)
                return
            await passage.send(event)
            passed += is_token(event)
        await strike(passage)

    return fault


def inside_token(k: int, place: Callable[[bytes], int], strike: Fault) -> Fault:
    """`strike` within token number `k` (from 0): after the first `place(event)` bytes of its event."""

    async def fault(passage: Passage) -> None:
        await passage.send_head()
        passed = 0
        async for event in passage.events():
            if is_token(event):
                if passed == k:
                    # The framing promises the whole event: the cut is inside a chunk of the transfer coding, too.
                    await passage.raw(b"%x\r\n" % len(event) + event[: place(event)])
                    await strike(passage)
                    return
                passed += 1
            await passage.send(event)
        await strike(passage)

    return fault


def in_the_middle(event: bytes) -> int:
    return len(event) // 2


def in_a_character(event: bytes) -> int:
    """Behind the first byte of a multi-byte character, or in the middle of the text where there is none."""
    at = next((i for i, byte in enumerate(event) if byte >= 0xC0), None)
    return event.index(b'"content":"' if b'"content":"' in event else b'"text":"') + 12 if at is None else at + 1


def before_the_blank_line(event: bytes) -> int:
    """All of an event but the line that closes it."""
    return len(event) - 1


async def cut(passage: Passage) -> None:
    await passage.close()


async def reset(passage: Passage) -> None:
    await passage.reset()


async def hang(passage: Passage) -> None:
    await passage.hang()


def says(*events: bytes, then: Fault | None = None) -> Fault:
    """More events, then the body's regular end, or another fault."""

    async def strike(passage: Passage) -> None:
        for event in events:
            await passage.send(event)
        if then is not None:
            await then(passage)
        await passage.end()

    return strike


engine_error = says(ENGINE_DEAD, DONE)
early_done = says(DONE)
clean_end = says()
garbage = says(b"\x00\xff\xfe{]not an event\n\ndata: {broken\n\n", b"\x80" * 100)
huge_line = says(*[b"data: " + b"x" * 2**20] * 5, b"\n\n")
long_line = says(b": " + b"x" * 2**20 + b"\n\n")  # a comment: legal, and longer than a usual reader's limit


async def garbage_framing(passage: Passage) -> None:
    """What is no transfer coding any more."""
    await passage.raw(b"\x00\xff zz not a chunk\r\n")
    await passage.hang()


def finishes(k: int, reason: str) -> Fault:
    """Token `k` carries this finish reason; then [DONE], as from vLLM when it aborts a request of its own accord."""

    async def fault(passage: Passage) -> None:
        await passage.send_head()
        passed = 0
        async for event in passage.events():
            if is_token(event) and passed == k:
                document = json.loads(event[6:])
                document["choices"][0]["finish_reason"] = reason
                for part in ("delta", "text"):
                    if part in document["choices"][0]:
                        document["choices"][0][part] = {} if part == "delta" else ""
                await passage.send(b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n" + DONE)
                await passage.end()
                return
            passed += is_token(event)
            await passage.send(event)

    return fault


async def duplicate_usage(passage: Passage) -> None:
    """The usage comes twice; the answer is otherwise whole."""
    await passage.send_head()
    async for event in passage.events():
        await passage.send(event)
        if b'"choices":[]' in event:
            await passage.send(event)
    await passage.end()


async def drip(passage: Passage) -> None:
    """The whole answer, byte by byte: each in a segment of its own."""
    await passage.send_head()
    async for event in passage.events():
        framed = b"%x\r\n%b\r\n" % (len(event), event)
        for place in range(len(framed)):
            await passage.raw(framed[place : place + 1])
            await passage.flushed()
    await passage.end()


async def reset_before_head(passage: Passage) -> None:
    """The request was taken; instead of an answer the connection is reset."""
    await passage.reset()


async def close_before_head(passage: Passage) -> None:
    await passage.close()


async def hang_before_head(passage: Passage) -> None:
    await passage.hang()


async def reset_in_head(passage: Passage) -> None:
    """In the middle of the answer's head."""
    head = await passage.ask()
    await passage.raw(head[: len(head) // 2])
    await passage.reset()


async def reset_after_head(passage: Passage) -> None:
    """The head, and nothing of the body."""
    await passage.send_head()
    await passage.reset()


async def hang_after_head(passage: Passage) -> None:
    await passage.send_head()
    await passage.hang()


def instead(status_and_type: tuple[bytes, bytes], body: bytes) -> Fault:
    """Another answer than the engine's."""
    status, content_type = status_and_type

    async def fault(passage: Passage) -> None:
        head = _HEAD.replace(b"200 OK", status) % (content_type, len(body))
        await passage.raw(head + body)

    return fault


_ERROR = (
    b'{"error":{"message":"EngineCore encountered an issue.","type":"InternalServerError","param":null,"code":500}}'
)
error_with_200 = instead((b"200 OK", b"application/json"), _ERROR)
error_event_with_200 = instead((b"200 OK", b"text/event-stream"), ENGINE_DEAD + DONE)
page_with_200 = instead((b"200 OK", b"text/html"), b"<html><body>It works!</body></html>")
empty_200 = instead((b"200 OK", b"text/event-stream"), b"")
status_500 = instead((b"500 Internal Server Error", b"application/json"), _ERROR)
status_503 = instead((b"503 Service Unavailable", b"application/json"), _ERROR)


async def speaks_something_else(passage: Passage) -> None:
    """Bytes that are no HTTP."""
    await passage.raw(b"\x15\x03\x01\x00\x02\x02\x16 SSH-2.0-OpenSSH_9.6\r\n\r\n")
    await passage.close()


async def endless_head(passage: Passage) -> None:
    """Headers without end."""
    await passage.raw(b"HTTP/1.1 200 OK\r\n")
    while True:
        await passage.raw(b"x-more: " + b"y" * 8000 + b"\r\n")


def half_document(strike: Fault) -> Fault:
    """Half of an answer in one piece."""

    async def fault(passage: Passage) -> None:
        await passage.send_head()
        async for data in passage.body():
            await passage.send(data[: len(data) // 2])
            await strike(passage)

    return fault
