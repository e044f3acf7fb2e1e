"""One worker: a whole gateway in a process of its own, on the port that all share, with a line to the supervisor.

Signals that a terminal or a service manager sends to the whole group come here as well: Ctrl-C is the supervisor's to pass on,
SIGTERM drains however often it comes.
"""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from types import FrameType

from batching.request import ReplicaId
from config.schema import Config
from metrics.pages import Page, read
from router.gateway import Gateway
from router.server import PenstockServer, banner, bind, bind_message, configure_logging
from router.standing import Word
from router.workers.link import Link, Orders, connect
from router.workers.share_client import ShareClient


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What a worker is started with; travels to its process."""

    number: int  # from 1
    config: Config
    reload: Callable[[], Config] | None
    host: str
    port: int  # the one that all share
    path: Path  # of the supervisor's socket


def work(seat: Seat) -> None:
    """The process; ends with exit code 1 where it could not begin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the server's own handler ignores it
    configure_logging(seat.config.log_level)
    try:
        listener = bind(seat.host, seat.port, shared=True)
    except OSError as error:
        sys.exit(bind_message(seat.config, error))
    config = of_worker(seat.config, seat.number)
    version = installed_version("penstock")
    gateway = Gateway(config, version=version)
    WorkerServer(gateway, listener, version, seat).run(sockets=[listener])


def of_worker(config: Config, number: int) -> Config:
    """What two processes must not share: a file that each writes has the worker's number in its name."""
    if config.decisions.file is None:
        return config
    file = Path(config.decisions.file)
    own = str(file.with_name(f"{file.stem}.worker-{number}{file.suffix}"))
    return config.model_copy(update={"decisions": config.decisions.model_copy(update={"file": own})})


class WorkerServer(PenstockServer):
    """The server of a gateway that is one of several."""

    def __init__(self, gateway: Gateway, listener: socket.socket, version: str, seat: Seat) -> None:
        wanted = seat.reload
        super().__init__(
            gateway, listener, version, None if wanted is None else lambda: of_worker(wanted(), seat.number)
        )
        gateway.identity += f"/worker-{seat.number}"
        self._seat = seat
        self._link: Link | None = None
        self._shares: ShareClient | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._link = self._gateway.crew = link = await connect(self._seat.path, self._seat.number)
        self._shares = shares = ShareClient(self._gateway.admission, link)  # reports only where Redis has no book
        orders = Orders(
            stop=self._stop,
            reload=self._reload_config,
            orphaned=self._orphaned,
            answer=shares.take,
            page=self._page,
            decisions=self._gateway.decisions.recent,
            left=self._gateway.farewells.left,
            told=self._told,
        )
        async with asyncio.TaskGroup() as tasks:
            reading = tasks.create_task(link.run(orders), name="link")
            keeping = tasks.create_task(link.keep(self._page), name="pages")
            try:
                await super().serve(sockets)
            finally:
                shares.close()
                reading.cancel()
                keeping.cancel()
        link.tell_page(self._page())
        await link.close()

    def announce(self) -> None:
        """To the supervisor, once there is a share to serve with; where Redis has the book, `/readyz` says whether there is."""
        assert self._link is not None
        assert self._shares is not None
        link, text = self._link, banner(self._gateway, self._listener.getsockname(), self._version)
        if self._gateway.shared is not None:
            link.ready(text)
        else:
            self._shares.begin(on_first=lambda: link.ready(text))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        del frame
        if sig == signal.SIGTERM:
            self._stop(now=False)

    def _stop(self, now: bool) -> None:
        self.should_exit = True
        self.force_exit = self.force_exit or now

    def _orphaned(self) -> None:
        """Nobody is left to start, stop or replace this worker: what runs is finished, nothing new begins."""
        self._stop(now=False)

    def _told(self, word: Word) -> None:
        """Of a replica, by the hub, which has joined it with what was said before."""
        now = asyncio.get_running_loop().time()
        standing = None if word.standing is None else word.standing.at(now)
        counts = word.seat == self._seat.number
        self._gateway.farewells.told(ReplicaId(word.replica), standing, counts=counts, why=word.why)

    def _page(self) -> Page:
        self._gateway.refresh_gauges()
        return read(self._gateway.metrics)
