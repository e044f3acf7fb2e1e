"""A uvicorn server in the test's own event loop."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

import uvicorn


@asynccontextmanager
async def in_this_loop(server: uvicorn.Server, listener: socket.socket) -> AsyncIterator[None]:
    """Serves on `listener` until the end of the block; signals stay the test runner's."""
    server.capture_signals = nullcontext  # type: ignore[method-assign,assignment]
    async with asyncio.TaskGroup() as tasks:
        serving = tasks.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.005)
        try:
            yield
        finally:
            server.should_exit = True
            await serving
