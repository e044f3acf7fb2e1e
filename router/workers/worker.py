"""One worker: a whole gateway in a process of its own, on the port that all share, with a line to the supervisor.

Signals that a terminal or a service manager sends to the whole group come here as well: Ctrl-C is the supervisor's to pass on,
SIGTERM drains however often it comes.
"""

import asyncio
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from types import FrameType

from backends.discovery.registration import Full
from batching.request import ReplicaId
from config.replica import ReplicaConfig
from config.schema import Config
from metrics.pages import Page, read
from router.decision_documents import Pseudonyms
from router.gateway import Gateway
from router.logs import configure_logging
from router.server import CannotListenError, Doors, PenstockServer, open_doors
from router.shared.prefixes import SharedPrefixes
from router.shared.suspicion import TOPIC
from router.standing import Word
from router.tenants.limit_client import LimitClient
from router.workers.doubts import WorkerSuspicion
from router.workers.link import Link, Orders, connect
from router.workers.prefixes import PrefixesOverHub
from router.workers.share_client import ShareClient


@dataclass(frozen=True, slots=True, kw_only=True)
class Seat:
    """What a worker is started with; travels to its process."""

    number: int  # from 1
    config: Config
    reload: Callable[[], Config] | None
    port: int  # the one that all share
    admin_port: int | None  # as well, if there is one
    path: Path  # of the supervisor's socket
    secret: bytes  # of the pseudonyms: a tenant has one name in all workers


def work(seat: Seat) -> None:
    """The process; ends with exit code 1 where it could not begin."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # until the server's own handler ignores it
    configure_logging(seat.config.log_level, seat.config.log_format)
    try:
        doors = open_doors(seat.config.server, seat.port, seat.admin_port, shared=True)
    except CannotListenError as error:
        sys.exit(str(error))
    config = of_worker(seat.config, seat.number)
    version = installed_version("penstock")
    gateway = Gateway(config, version=version, names=Pseudonyms(seat.secret))
    WorkerServer(gateway, doors, version, seat).run(sockets=doors.sockets)


def of_worker(config: Config, number: int) -> Config:
    """What two processes must not share: a file that each writes has the worker's number in its name."""
    if config.decisions.file is None:
        return config
    file = Path(config.decisions.file)
    own = str(file.with_name(f"{file.stem}.worker-{number}{file.suffix}"))
    return config.model_copy(update={"decisions": config.decisions.model_copy(update={"file": own})})


class WorkerServer(PenstockServer):
    """The server of a gateway that is one of several."""

    def __init__(self, gateway: Gateway, doors: Doors, version: str, seat: Seat) -> None:
        wanted = seat.reload
        super().__init__(gateway, doors, version, None if wanted is None else lambda: of_worker(wanted(), seat.number))
        gateway.identity += f"/worker-{seat.number}"
        self._seat = seat
        self._link: Link | None = None
        self._shares: ShareClient | None = None
        self._doubts: WorkerSuspicion | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._link = self._gateway.crew = link = await connect(self._seat.path, self._seat.number)
        self._shares = shares = ShareClient(self._gateway.admission, link)  # reports only where Redis has no book
        self._doubts = doubts = WorkerSuspicion(lambda body: link.say(TOPIC, body))
        limits = LimitClient(link)  # in its place, where there is one, Redis' book of limits (router/shared/build.py)
        if self._gateway.tenancy is not None:
            self._gateway.tenancy.accounts = limits
        orders = Orders(
            stop=self._stop,
            reload=self._reload_config,
            orphaned=self._orphaned,
            answer=shares.take,
            served=shares.hear,
            beside=shares.beside,
            granted=limits.take,
            page=self._page,
            decisions=self._gateway.decisions.recent,
            board=self._gateway.board.told,
            left=self._gateway.farewells.left,
            registered=self._registered,
            told=self._told,
            heard=doubts.hear,
            used=self._gateway.usage.take,
        )
        async with asyncio.TaskGroup() as tasks:
            standing = [
                tasks.create_task(link.run(orders), name="link"),
                tasks.create_task(link.keep(self._page, self._gateway.usage.take), name="pages"),
            ]
            if not self._gateway.config.redis.enabled:  # else all gateways' workers tell each other there
                prefixes = SharedPrefixes(PrefixesOverHub(link), self._gateway.scheduler.prefixes)
                standing.append(tasks.create_task(prefixes.run(), name="prefixes"))
            try:
                await super().serve(sockets)
            finally:
                shares.close()
                limits.close()
                for task in standing:
                    task.cancel()
        link.tell_used(self._gateway.usage.take())
        link.tell_page(self._page())
        await link.close()

    def announce(self) -> None:
        """To the supervisor, once there is a share to serve with; where Redis has the book, `/readyz` says whether there is."""
        assert self._link is not None
        assert self._shares is not None
        link, text = self._link, self.banner()
        if self._gateway.shared is not None:
            link.ready(text)
        else:
            assert self._gateway.watch is not None
            assert self._doubts is not None
            self._doubts.begin(self._gateway.watch.suspicion)
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

    def _registered(self, name: str, replica: Mapping[str, object] | None) -> None:
        discovered = self._gateway.discovered
        if discovered is None:
            return
        with suppress(Full):  # it is told to whoever asked
            discovered.register(name, None if replica is None else ReplicaConfig.model_validate(replica))

    def _page(self) -> Page:
        self._gateway.refresh_gauges()
        return read(self._gateway.metrics)
