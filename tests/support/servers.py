"""A uvicorn server in the test's own event loop."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress

import uvicorn


@asynccontextmanager
async def in_this_loop(server: uvicorn.Server, listener: socket.socket) -> AsyncIterator[None]:
    """Serves on `listener` until the end of the block; signals stay the test runner's."""
    over = asyncio.Event()

    async def until_over() -> None:
        """As uvicorn's own, which would sleep on: hundreds of tests end a server or two."""
        tick = 0
        while not await server.on_tick(tick):
            tick += 1
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await over.wait()

    server.capture_signals = nullcontext  # type: ignore[method-assign,assignment]
    server.main_loop = until_over  # type: ignore[method-assign]
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.005)
        try:
            yield
        finally:
            server.should_exit = True
            over.set()
            await serving
