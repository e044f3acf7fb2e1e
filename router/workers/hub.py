"""The supervisor's end of every worker's line: the books of shares and of limits, questions to all, and what the dead had counted.

Decides nothing about processes; a line that ends is a worker that is gone.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry

from batching.payers import PayBook
from batching.prefix_log import PrefixLog
from batching.shares import HolderId, ShareBook
from metrics.catalog import Metrics
from metrics.pages import Page, merged, packed, read, unpacked
from router.standing import Standing, Word, joined
from router.tenants.limit_book import LimitBook
from router.usage_book import UsageBook
from router.usage_query import Asked as UsageAsked
from router.usage_query import answer
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
    Replies,
    Reply,
    Report,
    Runs,
    Said,
    Standings,
    Topic,
    ToWorker,
    Used,
    from_worker,
    send,
)

log = logging.getLogger("penstock.workers")

_PATIENCE_S: Final = 2.0  # with a worker that does not reply: a scrape gives up after ten


@dataclass(slots=True, eq=False)
class _Line:
    """One connected worker."""

    holder: HolderId
    seat: int
    writer: asyncio.StreamWriter
    page: bytes | None = None  # the last it said
    service: bytes = b""  # to tenants, likewise
    told: dict[HolderId, bytes] = field(default_factory=dict)  # of the others' service
    said: dict[str, bytes] = field(default_factory=dict)  # by topic, likewise


@dataclass(slots=True, eq=False)
class _Open:
    """A question that is not answered yet."""

    ask: Ask
    asker: _Line
    awaited: set[_Line]
    bodies: list[bytes] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None


class Hub:
    """`serve` first; then it runs by what comes over the lines."""

    def __init__(self, seats: int, on_ready: Callable[[int, str], None], usage: UsageBook) -> None:
        self.book = ShareBook()
        self.limits = LimitBook()
        self.usage = usage
        self.payers = PayBook()
        self.prefixes = PrefixLog()
        self.metrics = Metrics.create(CollectorRegistry())  # what only a supervisor can count
        self._seats = seats
        self._on_ready = on_ready
        self._lines: list[_Line] = []
        self._conversations: set[asyncio.Task[None]] = set()
        self._open: dict[int, _Open] = {}
        self._holders, self._questions = count(1), count(1)
        self._departed = Page({}, {}, {})
        self._standing: dict[str, Standing] = {}  # of replicas, on this loop's clock
        self._server: asyncio.Server | None = None

    async def serve(self, path: Path) -> None:
        """Listen there; raises OSError."""
        self._server = await asyncio.start_unix_server(self._converse, path)

    async def close(self) -> None:
        """All lines, and what was going on over them."""
        if self._server is not None:
            self._server.close()
        for line in self._lines:
            line.writer.close()
        if self._conversations:  # cancelled by the loop's end they would each leave a traceback
            await asyncio.wait(self._conversations, timeout=_PATIENCE_S)

    def tell_all(self, message: ToWorker) -> None:
        for line in self._lines:
            send(line.writer, message)

    def connected(self, seat: int) -> bool:
        return any(line.seat == seat for line in self._lines)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: asyncio.Task[None] | None = asyncio.current_task()
        assert task is not None
        self._conversations.add(task)
        task.add_done_callback(self._conversations.discard)
        hello = await from_worker(reader)
        if not isinstance(hello, Hello):
            writer.close()
            return
        line = _Line(HolderId(f"worker-{next(self._holders)}"), hello.seat, writer)
        self._lines.append(line)
        self._tell_crew()
        now = asyncio.get_running_loop().time()
        send(writer, Standings({replica: standing.at(-now) for replica, standing in self._standing.items()}))
        for topic in {topic for other in self._lines for topic in other.said}:
            self._tell_said(topic, line)
        try:
            while (message := await from_worker(reader)) is not None:
                self._take(line, message)
        except msgspec.DecodeError:
            log.exception("worker %d speaks another language; its line is cut", line.seat)
        finally:
            self._lost(line)
            writer.close()

    def _take(self, line: _Line, message: FromWorker) -> None:
        match message:
            case Report(number, claims, payers, service):
                line.service = service
                if self.book.report(line.holder, number, claims):
                    self.payers.report(line.holder, payers)
                    self._answer(line)
                    self._settle()
            case Claims(number, of):
                now, holder = asyncio.get_running_loop().time(), line.holder
                send(
                    line.writer,
                    Grants(number, {t: self.limits.claim(holder, t, claim, now) for t, claim in of.items()}),
                )
            case Reply(id, body):
                self._reply(line, id, body)
            case Ask(id, Topic.PREFIXES, question):
                digest, after = msgspec.msgpack.decode(question, type=tuple[bytes, int])
                now_ms = int(asyncio.get_running_loop().time() * 1000)
                told = self.prefixes.exchange(now_ms, line.holder, digest, after)
                send(line.writer, Replies(id, [msgspec.msgpack.encode(told)]))
            case Ask():
                self._ask(line, message)
            case Said(topic, body):
                line.said[topic] = body
                self._tell_said(topic)
            case Runs(running):
                self.book.hear(line.holder, running)
                for other in self._lines:
                    if other is not line:
                        send(other.writer, Beside(self.book.others(other.holder, running)))
            case Used(entries):
                self.usage.extend(entries)
            case Ready(banner):
                self._on_ready(line.seat, banner)

    def _tell_said(self, topic: str, to: _Line | None = None) -> None:
        """To all, or one: what the others say."""
        for line in self._lines if to is None else (to,):
            others = {o.holder: o.said[topic] for o in self._lines if o is not line and topic in o.said}
            send(line.writer, Heard(topic, others))

    # -- shares ------------------------------------------------------------------------------------------------------

    def _answer(self, line: _Line) -> None:
        number, shares = self.book.answer(line.holder)
        send(line.writer, Answer(number, shares, self.payers.answer(line.holder), self._service_for(line)))

    def _service_for(self, line: _Line) -> dict[HolderId, bytes]:
        """What the others have said of their service that this one has not been told: all of it comes from each, each time."""
        said = {other.holder: other.service for other in self._lines if other is not line and other.service}
        news = {holder: service for holder, service in said.items() if line.told.get(holder) != service}
        line.told = said
        return news

    def _settle(self) -> None:
        """Those hear, too, who can give to somebody that is short, or can have more now; and who pays for others, or could."""
        unsettled = self.book.unsettled() | self.payers.owed()
        for line in self._lines:
            if line.holder in unsettled:
                self._answer(line)

    def _lost(self, line: _Line) -> None:
        self._lines.remove(line)
        ran = self.book.leave(line.holder)
        for other in self._lines:
            send(other.writer, Beside(self.book.others(other.holder, ran)))
        self.limits.leave(line.holder)
        self.payers.leave(line.holder)
        if line.page is not None:
            self._departed = merged([self._departed, unpacked(line.page).counted()])
        for asked in [asked for asked in self._open.values() if line in asked.awaited]:
            asked.awaited.discard(line)
            self._close_if_done(asked)
        for topic in line.said:
            self._tell_said(topic)
        self._settle()
        self._tell_crew()

    def _tell_crew(self) -> None:
        self.tell_all(Crew(len(self._lines), self._seats))

    # -- questions ---------------------------------------------------------------------------------------------------

    def _ask(self, line: _Line, ask: Ask) -> None:
        number = next(self._questions)
        asked = self._open[number] = _Open(ask, line, set(self._lines))
        asked.timer = asyncio.get_running_loop().call_later(_PATIENCE_S, self._close, asked, number)
        question = self._joined(ask.question, line.seat) if ask.topic is Topic.FAREWELL else ask.question
        for other in self._lines:
            send(other.writer, Question(number, ask.topic, question))

    def _joined(self, question: bytes, seat: int) -> bytes:
        """A word about a replica, as it is with those before it: in one order for all workers, and for those to come."""
        word, now = msgspec.json.decode(question, type=Word), asyncio.get_running_loop().time()
        if word.standing is None:
            self._standing.pop(word.replica, None)
        else:
            standing = joined(self._standing.get(word.replica), word.standing.at(now))
            self._standing[word.replica] = standing
            word.standing = standing.at(-now)
        word.seat = seat
        return msgspec.json.encode(word)

    def _reply(self, line: _Line, number: int, body: bytes) -> None:
        asked = self._open.get(number)
        if number == 0 or (asked is not None and asked.ask.topic is Topic.PAGE):
            line.page = body
        if asked is not None and line in asked.awaited:
            asked.awaited.discard(line)
            if asked.ask.topic is not Topic.PAGE:
                asked.bodies.append(body)
            self._close_if_done(asked)

    def _close_if_done(self, asked: _Open) -> None:
        if not asked.awaited:
            number = next(number for number, known in self._open.items() if known is asked)
            self._close(asked, number)

    def _close(self, asked: _Open, number: int) -> None:
        del self._open[number]
        if asked.timer is not None:
            asked.timer.cancel()
        bodies = asked.bodies
        if asked.ask.topic is Topic.PAGE:
            # The last page of each, be it this moment's or, of one that hangs, older: no counter goes backwards.
            bodies = [line.page for line in self._lines if line.page is not None]
            bodies.append(packed(merged([self._departed, read(self.metrics).counted()])))
        elif asked.ask.topic is Topic.USAGE:  # all have told by now what they had not
            wanted = msgspec.json.decode(asked.ask.question, type=UsageAsked)
            bodies = [msgspec.json.encode(answer(self.usage, wanted))]
        send(asked.asker.writer, Replies(asked.ask.id, bodies))
