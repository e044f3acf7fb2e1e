"""Starts the workers, replaces those that end unasked, passes signals on. Never touches a request.

SIGTERM and Ctrl-C: all drain; a second one: none waits. SIGHUP: all read the configuration again. While nothing has ever been served
a worker that ends is not replaced for ever: when all have ended, so does this.
"""

import asyncio
import logging
import multiprocessing
import secrets
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Final

from config.load import ConfigError
from config.schema import Config
from router.logs import announce, configure_logging
from router.server import ABORT_GRACE_S, CannotListenError, Doors, open_doors, refuse_keys
from router.tenants.key_reading import BadStore, Reading
from router.usage_book import UsageBook
from router.workers.hub import Hub
from router.workers.wire import Reload, Stop
from router.workers.worker import Seat, work

log = logging.getLogger("penstock.workers")

_SHORT_LIFE_S: Final = 5.0  # a worker that ends sooner is likely to end so again
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0  # before it is started again; doubles
_KILL_GRACE_S: Final = 5.0  # beyond every deadline of the worker itself


def supervise(config: Config, *, reload: Callable[[], Config] | None = None) -> int:
    """Serve with `server.workers` processes until a signal; returns the exit code (1: the address can't be had, or nobody starts)."""
    configure_logging(config.log_level, config.log_format)
    server = config.server
    try:
        Reading(config.auth).whole()  # each worker reads for itself, and would be started again and again
    except BadStore as error:
        return refuse_keys(error)
    with ExitStack() as stack:
        try:
            with ExitStack() as alone:  # who shares a port never hears that another has it
                doors = open_doors(server, server.port, server.admin_port)
                _stay(alone, doors)
                ports = doors.main.getsockname()[1], doors.admin_port
            _stay(
                stack, open_doors(server, *ports, shared=True)
            )  # never listens: it keeps the ports while workers come and go
        except CannotListenError as error:
            print(error, file=sys.stderr)  # noqa: T201 - the one line a user must see
            return 1
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="penstock-"))
        return asyncio.run(Supervisor(config, reload, ports, Path(folder) / "hub").run())


def _stay(stack: ExitStack, doors: Doors) -> None:
    """Open until the stack ends."""
    for opened in doors.sockets:
        stack.enter_context(opened)


class _Chair:
    """One seat and who sits there."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.process: BaseProcess | None = None
        self.started_s = 0.0
        self.ready = False
        self.pause_s = 0.0  # before the next start
        self.timer: asyncio.TimerHandle | None = None


class Supervisor:
    """`run` once."""

    def __init__(
        self, config: Config, reload: Callable[[], Config] | None, ports: tuple[int, int | None], path: Path
    ) -> None:
        self._config = config
        self._reload = reload
        self._port, self._admin_port = ports
        self._path = path
        self._secret = secrets.token_bytes(16)
        self._chairs = [_Chair(number + 1) for number in range(config.server.workers)]
        book = UsageBook(config.usage, int(datetime.now(UTC).timestamp()))
        self._hub = Hub(len(self._chairs), self._ready, book)
        self._context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks
        self._ended = asyncio.Event()
        self._banner_printed = False
        self._served = False  # somebody was ready once
        self._stops = 0
        self._exit_code = 0
        self._deadline: asyncio.TimerHandle | None = None

    async def run(self) -> int:
        """Until all workers have ended."""
        loop = asyncio.get_running_loop()
        await self._hub.serve(self._path)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload_all)
        for chair in self._chairs:
            self._start(chair)
        await self._ended.wait()
        if self._deadline is not None:
            self._deadline.cancel()
        await self._hub.close()
        return self._exit_code

    # -- workers -----------------------------------------------------------------------------------------------------

    def _start(self, chair: _Chair) -> None:
        loop = asyncio.get_running_loop()
        seat = Seat(
            number=chair.number,
            config=self._config,
            reload=self._reload,
            port=self._port,
            admin_port=self._admin_port,
            path=self._path,
            secret=self._secret,
        )
        chair.ready, chair.started_s, chair.timer = False, loop.time(), None
        chair.process = self._context.Process(target=work, args=(seat,), name=f"worker-{chair.number}", daemon=True)
        chair.process.start()
        loop.add_reader(chair.process.sentinel, self._gone, chair)

    def _ready(self, number: int, banner: str) -> None:
        chair = self._chairs[number - 1]
        chair.ready = self._served = True
        log.info("worker %d serves (pid %s)", number, None if chair.process is None else chair.process.pid)
        if not self._banner_printed and all(chair.ready for chair in self._chairs):
            self._banner_printed = True
            announce(f"{banner}Workers: {len(self._chairs)}", self._config.log_format)

    def _gone(self, chair: _Chair) -> None:
        loop, process = asyncio.get_running_loop(), chair.process
        assert process is not None
        loop.remove_reader(process.sentinel)
        process.join()
        code = process.exitcode
        process.close()
        chair.process = None
        if self._stops:
            if code and code != -signal.SIGTERM:  # it was told to end before it could hear orders
                self._exit_code = 1
            self._end_if_empty()
            return
        how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
        if not self._served and not any(other.process for other in self._chairs):
            log.error("no worker could start (the last: %s); see above", how)
            self._exit_code = 1
            self._cancel_starts()
            self._ended.set()
            return
        self._replace(chair, how)

    def _replace(self, chair: _Chair, how: str) -> None:
        loop = asyncio.get_running_loop()
        if not chair.ready:
            chair.pause_s = max(chair.pause_s, _FIRST_PAUSE_S)
        elif loop.time() - chair.started_s >= _SHORT_LIFE_S:
            chair.pause_s = 0.0
        log.warning("worker %d has ended (%s) and is started again", chair.number, how)
        self._hub.metrics.worker_restarts_total.inc()
        chair.timer = loop.call_later(chair.pause_s, self._start, chair)
        chair.pause_s = min(max(2 * chair.pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)

    # -- signals -----------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        self._stops += 1
        now = self._stops > 1
        self._hub.tell_all(Stop(now))
        self._cancel_starts()
        for chair in self._chairs:
            if chair.process is not None and not self._hub.connected(chair.number):
                chair.process.terminate()  # not far enough to hear orders, so it serves nobody
        if self._deadline is not None:
            self._deadline.cancel()
        grace_s = 0.0 if now else self._config.server.drain_timeout_s + ABORT_GRACE_S
        self._deadline = asyncio.get_running_loop().call_later(grace_s + _KILL_GRACE_S, self._kill)
        self._end_if_empty()

    def _cancel_starts(self) -> None:
        for chair in self._chairs:
            if chair.timer is not None:
                chair.timer.cancel()
                chair.timer = None

    def _kill(self) -> None:
        for chair in self._chairs:
            if chair.process is not None:
                log.error("worker %d does not end; it is killed", chair.number)
                chair.process.kill()

    def _end_if_empty(self) -> None:
        if not any(chair.process for chair in self._chairs):
            self._ended.set()

    def _reload_all(self) -> None:
        """Each worker reads for itself and says what it refuses; here it is for those that start later."""
        if self._reload is not None:
            try:
                replicas = self._reload().replicas
            except ConfigError:
                pass  # said by the workers
            else:
                self._config = self._config.model_copy(update={"replicas": replicas})
        self._hub.tell_all(Reload())
