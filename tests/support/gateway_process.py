"""`penstock serve` as a process of its own: signals, exit codes and what it prints."""

import asyncio
import os
import re
import resource
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from tests.support.patience import PATIENCE_S

_PENSTOCK = Path(sys.executable).with_name("penstock")
_ROOT = Path(__file__).resolve().parents[2]
_URL = re.compile(r"listens on (http://\S+)")


class GatewayProcess:
    """Running until told otherwise; `log` grows while it does."""

    def __init__(self, process: asyncio.subprocess.Process, tasks: asyncio.TaskGroup) -> None:
        self._process = process
        self._changed = asyncio.Condition()
        self.log = ""
        self.url = ""
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            tasks.create_task(self._read(stream))

    @property
    def pid(self) -> int:
        return self._process.pid

    async def listens(self) -> None:
        """Until the banner says where."""
        self.url = (await self.until_log(_URL.pattern))[1]

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def until_log(self, pattern: str, *, times: int = 1) -> re.Match[str]:
        """The first match, once there are so many."""
        async with asyncio.timeout(PATIENCE_S), self._changed:
            await self._changed.wait_for(lambda: len(re.findall(pattern, self.log)) >= times or self._ended)
        match = re.search(pattern, self.log)
        assert match, self.log
        return match

    async def exit_code(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self._process.wait()

    def limit_descriptors(self, spare: int) -> None:
        """From now on it can open only so many more."""
        limit = len(list(Path(f"/proc/{self.pid}/fd").iterdir())) + spare
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (limit, limit))

    def kill(self) -> None:
        if self._process.returncode is None:
            self._process.kill()

    @property
    def _ended(self) -> bool:
        return self._process.returncode is not None

    async def _read(self, stream: asyncio.StreamReader) -> None:
        while line := await stream.readline():
            async with self._changed:
                self.log += line.decode()
                self._changed.notify_all()
        async with self._changed:
            self._changed.notify_all()


@asynccontextmanager
async def started(*arguments: str, code: Path = _ROOT) -> AsyncIterator[GatewayProcess]:
    """`penstock serve` with these arguments, of the packages in that folder; killed at the end of the block if it still runs."""
    async with asyncio.TaskGroup() as tasks:
        process = await asyncio.create_subprocess_exec(
            _PENSTOCK, "serve", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            # This checkout's code unless told otherwise, whichever one is installed; a session of its own, so that its workers can be killed with it.
            env={"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(code)}, start_new_session=True,
        )  # fmt: skip
        gateway = GatewayProcess(process, tasks)
        try:
            yield gateway
        finally:
            gateway.kill()
            await process.wait()
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@asynccontextmanager
async def serving(config: Path, *arguments: str, code: Path = _ROOT) -> AsyncIterator[GatewayProcess]:
    """... from this file, on a free port, once it listens."""
    async with started("--config", str(config), "--port", "0", *arguments, code=code) as gateway:
        await gateway.listens()
        yield gateway
