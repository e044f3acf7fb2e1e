"""One gateway's part in the book that gateways share through Redis: one background task that reports, and says when less may be placed.

Decides when to report, and what is said when Redis cannot be reached; what a report says and what an answer means is
`batching.shared_holder`'s. No request waits for it.
"""

import asyncio
import logging
from contextlib import suppress
from math import inf
from typing import Final, Protocol

import msgspec

from batching.meter import WHOLE_PRICE
from batching.request import ReplicaId
from batching.shared_book import Terms
from batching.shared_holder import Mode, SharedHolder
from batching.shares import WHOLE, HolderId, Running
from config.shared import SharedRedis
from metrics.catalog import Metrics
from router.admission import Admission
from router.farewell import Farewells
from router.shared.book_in_redis import Book
from router.shared.notices import SharedNotices
from router.shared.redis_line import Unreachable
from router.standing import Left, Word
from router.telling import pause_s

log = logging.getLogger("penstock.shared")

_LEAST_PAUSE_S: Final = 0.005  # between two reports, however urgent
_UNEASY_S: Final = 0.05
_TICK_S: Final = 0.001  # timers may fire a little early; what is so near has come
_BUSY_RATIO: Final = 20  # no more than a twentieth of the time is spent on reckoning

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(tuple[HolderId, int, dict[ReplicaId, Running]]).decode


def terms_of(config: SharedRedis, workers: int) -> Terms:
    """Of one worker: the gateway's static share is all its workers' together."""
    lease, settle, forget = (int(1000 * s) for s in (config.lease_s, config.settle_s, config.forget_s))
    return Terms(lease, settle, forget, int(WHOLE * config.static_share_ratio) // workers)


class Topic(Protocol):
    """What gateways tell each other with their reports: `SharedHolder.more` and `heard`, small things."""

    def say(self, holder: SharedHolder) -> None:
        """Before each report."""
        ...

    def hear(self, holder: SharedHolder) -> None:
        """After each, answered or not, and when a lease ends without one."""
        ...


class SharedBudgets:
    """`run` inside the gateway's task group, once its replicas are known; `leave` when all that ran has ended."""

    def __init__(
        self,
        book: Book,
        admission: Admission,
        farewells: Farewells,
        metrics: Metrics,
        *,
        name: str,
        instance: str,
        terms: Terms,
    ) -> None:
        self.holder = SharedHolder(admission.scheduler.stake, name, instance, terms)
        self.topics: list[Topic] = []
        self._terms = terms
        self._book = book
        self._admission = admission
        self._farewells = farewells
        self._metrics = metrics
        self._notices = SharedNotices(book, farewells)
        self._hurried = asyncio.Event()
        self._reported_s = 0.0
        self._due_s = inf  # the next report
        self._urgent_s = -inf  # when a report was last made before its time
        self._pause_s = _UNEASY_S
        self._said = Mode.NONE  # the mode that the log knows
        self._said_unread: set[str] = set()
        self._trouble = "not asked yet"

    async def run(self) -> None:
        """Until it is cancelled."""
        self._admission.on_waiting = self._hurry
        self._admission.on_expired = self._expired
        while True:
            pause_s = await self._exchange()
            if pause_s < self._pause_s:  # urgent, but not for ever: where all are short, all change all the time
                now = asyncio.get_running_loop().time()
                pause_s = max(pause_s, self._urgent_s + self._pause_s - now, _LEAST_PAUSE_S)
                self._urgent_s = now + pause_s
            await self._wait(pause_s)

    async def listen(self) -> None:
        """To others that are short, until it is cancelled; without it they are heard with the next report."""
        while True:
            with suppress(Unreachable):
                await self._book.listen(self._called, self._told)
            await asyncio.sleep(self.holder.pause_s)

    async def tell(self) -> None:
        """The others what runs by now, until it is cancelled: without it they know it as of the last report, and pick the same replica at once."""
        loop, holder = asyncio.get_running_loop(), self.holder
        while True:
            began_s = loop.time()
            number, running = holder.running()
            cost_s = loop.time() - began_s
            wait_s = pause_s(holder.gateways, cost_s=cost_s)
            if running and holder.gateways > 1 and holder.mode is Mode.REDIS:
                try:
                    await self._book.tell(_encode((holder.name, number, running)))
                except Unreachable:  # the report will say so
                    wait_s = holder.pause_s
            await asyncio.sleep(wait_s)

    async def leave(self) -> None:
        """The others may have all of it; not more than one call's time is spent on saying so."""
        try:
            await self._book.leave(self.holder.name, self.holder.instance)
        except Unreachable as error:
            log.info("Redis does not hear that this gateway ends (%s); its lease lapses by itself", error)
        await self._book.aclose()

    def say(self, word: Word) -> None:
        """What was just done here about a replica, for the others."""
        self._notices.say(word)
        self.soon()

    def soon(self) -> None:
        """There is something to tell: the next report need not be waited for."""
        self._hurried.set()

    def over(self, replica: str, why: str) -> None:
        """A notice ended by itself."""
        if why == "vanished":
            self._notices.say(Word(replica=replica, standing=None, why=why))

    # -- what is asked of it -----------------------------------------------------------------------------------------

    def problem(self) -> str | None:
        """Why nothing may be placed."""
        if self.holder.superseded:
            return (
                f"shared budgets: another gateway goes by the name {self.holder.name!r}; give each its own redis.name"
            )
        if self.holder.mode is Mode.NONE:
            return f"shared budgets: Redis has not answered ({self._trouble})"
        return None

    def document(self) -> dict[str, object]:
        """For `/readyz`."""
        age_s = self.holder.age_s(asyncio.get_running_loop().time())
        return {
            "mode": self.holder.mode.value,
            "age_s": None if age_s is None else round(age_s, 3),
            "gateways": self.holder.gateways,
            "name": self.holder.name,
        }

    def refresh_gauges(self) -> None:
        """Before a scrape."""
        m = self._metrics
        age_s = self.holder.age_s(asyncio.get_running_loop().time())
        for mode in Mode:
            m.shared_budget_state.labels(mode.value).set(mode is self.holder.mode)
        m.shared_budget_holders.set(self.holder.gateways)
        m.shared_budget_age_seconds.set(float("nan") if age_s is None else age_s)

    def widened(self, left: Left) -> Left:
        """What this gateway has on the replicas, and the others as far as they are heard: released is what all have let go of."""
        holder = self.holder
        heard = holder.mode is Mode.REDIS
        return Left(
            requests={r: n + holder.others_on(r) for r, n in left.requests.items()},
            released={replica for replica in left.released if heard and holder.others_let_go(replica)},
        )

    # -- the task ----------------------------------------------------------------------------------------------------

    async def _exchange(self) -> float:
        """One report; seconds until the next."""
        loop, holder = asyncio.get_running_loop(), self.holder
        began_s = self._reported_s = loop.time()
        self._expired(began_s)
        self._hurried.clear()
        holder.released = sorted(self._farewells.left().released)
        for topic in self.topics:
            topic.say(holder)
        report = holder.report(began_s)
        reckoned_s = loop.time() - began_s
        try:
            heard = await self._book.report(report, self._notices.stamp)
            answered_s = loop.time()
            pause_s = holder.take(answered_s, heard.reply)
            reckoned_s += loop.time() - answered_s
            self._trouble = heard.reply.status.value
            if holder.mode is Mode.REDIS:
                self._notices.take(heard)
                await self._notices.tell()
        except Unreachable as error:
            self._metrics.redis_errors_total.labels(error.kind).inc()
            self._trouble = str(error)
            pause_s = holder.failed(loop.time())
        self._pause_s = max(_UNEASY_S, _BUSY_RATIO * reckoned_s)
        self._settled()
        return pause_s

    async def _wait(self, pause_s: float) -> None:
        """Until the next report is due: sooner where somebody waits, and no later than the shares change by themselves."""
        loop = asyncio.get_running_loop()
        self._due_s = loop.time() + pause_s
        while (now := loop.time()) < self._due_s - _TICK_S:
            if now >= self.holder.expires_s - _TICK_S:
                self._expired(now + _TICK_S)
            try:
                async with asyncio.timeout_at(min(self._due_s, self.holder.expires_s)):
                    await self._hurried.wait()
            except TimeoutError:
                continue
            self._hurried.clear()
            self._due_s = min(self._due_s, max(self._reported_s + self._pause_s, loop.time() + _LEAST_PAUSE_S))

    def _told(self, message: bytes) -> None:
        """What another has running."""
        try:
            name, number, running = _decode(message)
        except msgspec.DecodeError:
            log.warning("what a gateway tells here is of another version; what it has running is known less exactly")
            return
        if name != self.holder.name:
            self.holder.hear(name, number, running, asyncio.get_running_loop().time())
            self._admission.soon()

    def _called(self, name: str) -> None:
        if name != self.holder.name:
            self._hurry()

    def _hurry(self) -> None:
        """Somebody waits; whether for want of a share, the report will tell."""
        if self._reported_s + self._pause_s < self._due_s - _TICK_S:
            self._hurried.set()

    def _expired(self, now: float) -> None:
        """By the clock alone; `Admission` asks before it places anything."""
        if self.holder.check(now):
            self._settled()

    def _settled(self) -> None:
        """After anything that may have changed what may be placed."""
        self._admission.expires_s = self.holder.expires_s
        self._admission.lapsed_s = min(self.holder.lapsed_s, asyncio.get_running_loop().time())  # a timer may be early
        self._pay()
        for topic in self.topics:
            topic.hear(self.holder)
        self._admission.soon()
        self._say_mode()
        self._say_unread()

    def _pay(self) -> None:
        """Of each machine's price as much as may be used of it: all gateways together never charge more than there is (docs/cost.md)."""
        stake, now = self._admission.scheduler.stake, asyncio.get_running_loop().time()
        for replica, claim in stake.claims().items():
            stake.pay(replica, claim.enforced * WHOLE_PRICE // WHOLE, now)

    def _say_unread(self) -> None:
        """Once for each."""
        if new := set(self.holder.unread) - self._said_unread:
            log.warning(
                "what %s say through Redis cannot be read here: another version, or lost", ", ".join(sorted(new))
            )
        self._said_unread = set(self.holder.unread)

    def _say_mode(self) -> None:
        """Once at each change."""
        holder, before = self.holder, self._said
        if holder.mode is before:
            return
        self._said = mode = holder.mode
        trouble = self._trouble
        if mode is Mode.REDIS:
            others = holder.gateways - 1
            wait = "; its book is new, so that shares come when a lease has passed" if holder.frozen else ""
            log.info("budgets are shared through Redis as %s, with %d others%s", holder.name, others, wait)
        elif mode is Mode.LAST_LEASE:
            left_s = holder.expires_s - asyncio.get_running_loop().time()
            log.warning("Redis does not answer (%s): the last shares hold for %.1f s more", trouble, left_s)
        elif mode is Mode.STATIC:
            log.warning("without Redis (%s): at most %.3g of each replica is used", trouble, self._terms.static / WHOLE)
        else:
            log.error("%s; nothing is placed", self.problem())
