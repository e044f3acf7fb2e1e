"""A worker's line to its supervisor: orders come in, reports and figures go out, questions to all are asked and answered.

Decides nothing: whoever made it says what an order does. Without a supervisor there is nobody to start or stop this worker, so the
end of the line is an order, too.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

import msgspec

from batching.payers import Payer
from batching.prefix_log import Told
from batching.request import ReplicaId
from batching.shares import Claim, HolderId, Running, Share
from metrics.pages import Page, packed, unpacked
from router.board.part import Part, Wanted
from router.decision_documents import Document
from router.decision_log import Asked
from router.standing import Left, Word
from router.tenants.limit_book import Claim as LimitClaim
from router.tenants.limit_book import Grant
from router.usage_book import Entry
from router.usage_query import Asked as UsageAsked
from router.usage_query import Found
from router.workers.wire import (
    Answer,
    Ask,
    Beside,
    Claims,
    Crew,
    FromWorker,
    Grants,
    Heard,
    Hello,
    Question,
    Ready,
    Reload,
    Replies,
    Reply,
    Report,
    Runs,
    Said,
    Standings,
    Stop,
    Topic,
    ToWorker,
    Used,
    send,
    to_worker,
)

_PATIENCE_S: Final = 3.0  # the supervisor gives up after two
_KEEP_S: Final = 1.0  # of what was counted, so much may be lost with a worker that is killed


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What the supervisor's words do here."""

    stop: Callable[[bool], None]  # now?
    reload: Callable[[], None]
    orphaned: Callable[[], None]  # the supervisor is gone
    answer: Callable[[int, Mapping[ReplicaId, Share], Mapping[ReplicaId, int]], None]  # shares, parts of prices
    served: Callable[[Mapping[HolderId, bytes]], None]  # of other workers' service to tenants
    granted: Callable[[int, Mapping[str, Grant]], None]  # of tenants' limits
    page: Callable[[], Page]  # the figures of now
    decisions: Callable[[Asked], list[Document]]  # the last placements
    board: Callable[[Wanted], bytes]  # this worker's part of the board, packed
    left: Callable[[], Left]  # what runs on the replicas
    registered: Callable[[str, Mapping[str, object] | None], None]  # an engine that called in at another worker
    told: Callable[[Word], None]  # of a replica; its deadline counts from now
    beside: Callable[[Mapping[ReplicaId, Running]], None]  # what the others have running by now
    heard: Callable[[str, Mapping[HolderId, bytes]], None]  # on a topic, all that the other workers say
    used: Callable[[], list[Entry]]  # by requests, since it was last asked


class Link:
    """`connect` gives one; `run` reads until the line ends."""

    def __init__(self, seat: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seat = seat
        self.live = self.seats = 1
        self._reader = reader
        self._writer = writer
        self._asked: dict[int, asyncio.Future[list[bytes]]] = {}
        self._numbers = count(1)
        self._orders: Orders | None = None
        self._send(Hello(seat))

    async def run(self, orders: Orders) -> None:
        """Until the supervisor is gone, or this is cancelled."""
        self._orders = orders
        while (message := await to_worker(self._reader)) is not None:
            self._take(message, orders)
        for future in self._asked.values():
            future.cancel()
        orders.orphaned()

    async def keep(self, page: Callable[[], Page], used: Callable[[], list[Entry]]) -> None:
        """Tell again and again what was counted and used, in case this process ends without a word; until cancelled."""
        while True:
            self.tell_used(used())
            self.tell_page(page())
            await asyncio.sleep(_KEEP_S)

    async def close(self) -> None:
        """What was said still goes out."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    # -- what is said ------------------------------------------------------------------------------------------------

    def report(
        self, number: int, claims: Mapping[ReplicaId, Claim], payers: Mapping[ReplicaId, Payer], service: bytes
    ) -> None:
        self._send(Report(number, dict(claims), dict(payers), service))

    def claim(self, number: int, claims: Mapping[str, LimitClaim]) -> None:
        """Of tenants' limits."""
        self._send(Claims(number, dict(claims)))

    def tell_running(self, running: Mapping[ReplicaId, Running]) -> None:
        """The others what runs by now."""
        self._send(Runs(dict(running)))

    def say(self, topic: str, body: bytes) -> None:
        """To the other workers, in place of what was said before; whoever comes later hears it, too."""
        self._send(Said(topic, body))

    def ready(self, banner: str) -> None:
        self._send(Ready(banner))

    def tell_page(self, page: Page) -> None:
        self._send(Reply(0, packed(page)))

    def tell_used(self, entries: list[Entry]) -> None:
        if entries:
            self._send(Used(entries))

    async def pages(self) -> Sequence[Page]:
        """Of all workers, and of those who are gone. Without a supervisor: nobody's but ours."""
        bodies = await self._ask(Topic.PAGE, b"")
        if bodies is None:
            return [] if self._orders is None else [self._orders.page()]
        return [unpacked(body) for body in bodies]

    async def decisions(self, asked: Asked) -> list[Document]:
        """Of all workers, newest first."""
        bodies = await self._ask(Topic.DECISIONS, msgspec.json.encode(asked))
        found: list[Document] = [entry for body in bodies or () for entry in msgspec.json.decode(body)]
        found.sort(key=lambda entry: str(entry["at"]), reverse=True)
        return found[: asked.limit]

    async def parts(self, wanted: Wanted) -> list[Part]:
        """Of all workers; without a supervisor nobody's, and the board makes do with this one's."""
        bodies = await self._ask(Topic.BOARD, msgspec.msgpack.encode(wanted))
        return [msgspec.msgpack.decode(body, type=Part) for body in bodies or ()]

    async def tell(self, word: Word) -> Left:
        """All workers. Without a supervisor: this one."""
        bodies = await self._ask(Topic.FAREWELL, msgspec.json.encode(word))
        if bodies is None and self._orders is not None:
            word.seat = self.seat
            self._orders.told(word)
        return self._left(bodies)

    def over(self, replica: ReplicaId, why: str) -> None:
        """A notice ended by itself; nobody waits until all know."""
        word = Word(replica=replica, standing=None, why=why)
        self._send(Ask(next(self._numbers), Topic.FAREWELL, msgspec.json.encode(word)))

    async def left(self) -> Left:
        """Of all workers together; where one does not reply, nothing is known to be released."""
        return self._left(await self._ask(Topic.LEFT, b""))

    async def usage(self, asked: UsageAsked) -> Found | None:
        """By the hub's book, after everybody has told it all; None: there is no hub."""
        bodies = await self._ask(Topic.USAGE, msgspec.json.encode(asked))
        return msgspec.json.decode(bodies[0], type=Found) if bodies else None

    async def prefixes(self, digest: bytes, after: int) -> Told | None:
        """What other workers said of prefix caches, after this is said; None: there is no hub."""
        bodies = await self._ask(Topic.PREFIXES, msgspec.msgpack.encode((digest, after)))
        return msgspec.msgpack.decode(bodies[0], type=Told) if bodies else None

    def _left(self, bodies: list[bytes] | None) -> Left:
        if bodies is None:
            return Left() if self._orders is None else self._orders.left()
        found = [msgspec.json.decode(body, type=Left) for body in bodies]
        if not found:
            return Left()
        total = sum(found[1:], start=found[0])
        return total if len(found) >= self.live else Left(requests=total.requests)

    async def register(self, name: str, replica: Mapping[str, object] | None) -> None:
        """All workers, this one again."""
        await self._ask(Topic.REGISTRATION, msgspec.json.encode((name, replica)))

    async def _ask(self, topic: Topic, question: bytes) -> list[bytes] | None:
        number = next(self._numbers)
        future: asyncio.Future[list[bytes]] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        self._send(Ask(number, topic, question))
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await future
        except TimeoutError:
            return None
        finally:
            del self._asked[number]

    def _take(self, message: ToWorker, orders: Orders) -> None:
        match message:
            case Answer(number, shares, paying, service):
                orders.served(service)
                orders.answer(number, shares, paying)
            case Grants(number, of):
                orders.granted(number, of)
            case Question(number, Topic.PAGE):
                self._send(Reply(number, packed(orders.page())))
            case Question(number, Topic.DECISIONS, question):
                asked = msgspec.json.decode(question, type=Asked)
                self._send(Reply(number, msgspec.json.encode(orders.decisions(asked))))
            case Question(number, Topic.BOARD, question):
                self._send(Reply(number, orders.board(msgspec.msgpack.decode(question, type=Wanted))))
            case Question(number, Topic.LEFT):
                self._send(Reply(number, msgspec.json.encode(orders.left())))
            case Question(number, Topic.FAREWELL, question):
                orders.told(msgspec.json.decode(question, type=Word))
                self._send(Reply(number, msgspec.json.encode(orders.left())))
            case Question(number, Topic.REGISTRATION, question):
                orders.registered(*msgspec.json.decode(question, type=tuple[str, dict[str, object] | None]))
                self._send(Reply(number, b""))
            case Question(number, Topic.USAGE):
                self.tell_used(orders.used())
                self._send(Reply(number, b""))
            case Standings(of):
                for replica, standing in of.items():
                    orders.told(Word(replica=replica, standing=standing))
            case Replies(number, bodies):
                if (future := self._asked.get(number)) is not None and not future.done():
                    future.set_result(bodies)
            case Beside(others):
                orders.beside(others)
            case Heard(topic, by):
                orders.heard(topic, by)
            case Crew(live, seats):
                self.live, self.seats = live, seats
            case Stop(now):
                orders.stop(now)
            case Reload():
                orders.reload()

    def _send(self, message: FromWorker) -> None:
        send(self._writer, message)


async def connect(path: Path, seat: int) -> Link:
    """Raises OSError where nobody listens."""
    return Link(seat, *await asyncio.open_unix_connection(path))
