"""A uvicorn server in the test's own event loop."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress

import uvicorn
from starlette.types import ASGIApp


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


@asynccontextmanager
async def served(app: ASGIApp, *, graceful_s: int | None = None) -> AsyncIterator[str]:
    """An application on a free port of this machine; yields its URL. `graceful_s`: how long requests may last beyond the block."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=graceful_s)
        async with in_this_loop(uvicorn.Server(config), listener):
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
