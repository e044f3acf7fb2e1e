"""A `penstock` command of this checkout as a process of its own, whose output can be waited for."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tests.support.gateway_process import GatewayProcess

_PENSTOCK = Path(sys.executable).with_name("penstock")
_ROOT = Path(__file__).resolve().parents[2]


@asynccontextmanager
async def command(*arguments: str, environ: Mapping[str, str] | None = None) -> AsyncIterator[GatewayProcess]:
    """Running; killed at the end of the block if it still does. `environ` is all that it finds."""
    async with asyncio.TaskGroup() as tasks:
        process = await asyncio.create_subprocess_exec(
            _PENSTOCK, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            env={"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(_ROOT), **(environ or {})},
        )  # fmt: skip
        running = GatewayProcess(process, tasks)
        try:
            yield running
        finally:
            running.kill()
            await process.wait()
