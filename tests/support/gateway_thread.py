"""A gateway on a real socket in a thread and loop of its own, for clients that block; what goes wrong unseen is collected."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from config.schema import Config
from tests.support.conditions import until_at_rest
from tests.support.gateways import Running, listening
from tests.support.patience import PATIENCE_S

T = TypeVar("T")


class Errors(logging.Handler):
    """Every ERROR that the process logs, and what its loop could tell nobody."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(
            f"{record.name}: {record.getMessage()} {record.exc_info[1]!r}" if record.exc_info else record.getMessage()
        )

    def of_loop(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.seen.append(f"loop: {context['message']} {context.get('exception')!r}")


class GatewayThread:
    """`url` is where it listens; `errors` is empty as long as nothing has gone wrong unseen."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self.errors = Errors()
        self._running: Running | None = None
        self.url = ""
        self._tasks = 0

    def ask(self, question: Callable[[Running], T]) -> T:
        """Something about the gateway, answered in its own thread."""

        async def answered() -> T:
            assert self._running is not None
            return question(self._running)

        return asyncio.run_coroutine_threadsafe(answered(), self._loop).result(PATIENCE_S)

    def at_rest(self) -> None:
        """Until no request, lease, task or connection is left of what clients did; raises where some stays."""

        async def rest() -> None:
            assert self._running is not None
            running = self._running
            await until_at_rest(running)
            async with asyncio.timeout(PATIENCE_S):
                while running.connections or len(asyncio.all_tasks()) > self._tasks + 1:  # this one
                    await asyncio.sleep(0.01)

        asyncio.run_coroutine_threadsafe(rest(), self._loop).result(2 * PATIENCE_S)

    def run(self) -> None:
        self._loop.set_exception_handler(self.errors.of_loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    def wait_ready(self) -> None:
        assert self._ready.wait(PATIENCE_S)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _serve(self) -> None:
        async with listening(self._config) as running:
            self._running, self.url = running, running.url
            await asyncio.sleep(0.1)  # what starting leaves to the loop
            self._tasks = len(asyncio.all_tasks())
            self._ready.set()
            await self._stop.wait()


@contextmanager
def gateway_thread(config: Config) -> Iterator[GatewayThread]:
    """... until the end of the block."""
    gateway = GatewayThread(config)
    thread = threading.Thread(target=gateway.run, name="gateway")
    logging.getLogger().addHandler(gateway.errors)
    thread.start()
    try:
        gateway.wait_ready()
        yield gateway
    finally:
        gateway.stop()
        thread.join(PATIENCE_S)
        logging.getLogger().removeHandler(gateway.errors)
