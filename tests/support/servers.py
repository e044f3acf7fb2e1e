"""A uvicorn server in the test's own event loop."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext

import uvicorn

from backends.simulated.options import EngineOptions
from backends.simulated.server import create_engine_app


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


@asynccontextmanager
async def simulated_engine(**options: object) -> AsyncIterator[str]:
    """A simulated engine behind HTTP in this loop, of the model `m`; yields its URL."""
    values: dict[str, object] = {
        "model": "m",
        "kv_blocks": 4096,
        "max_model_len": 32_768,
        "max_num_seqs": 256,
        **options,
    }
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        app = create_engine_app(EngineOptions(**values))  # type: ignore[arg-type]
        async with in_this_loop(uvicorn.Server(uvicorn.Config(app, log_level="warning")), listener):
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
