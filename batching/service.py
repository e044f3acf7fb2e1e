"""What each tenant was served by this process and wants of it, said to the others, and what they said, taken over into this one's counters. Pure.

A tenant that spreads over several processes would otherwise stand in each of them as if the others had served it nothing. What is said
is cumulative, by account: an account is one tenant in one lane's class of ranks, since this process began to serve it; its number is never
used again. So a report that is lost or comes twice changes nothing: a hearer adds what an account has grown by since it last heard of it. An
account that it hears of for the first time counts in full, unless it may be older than the hearer, or was forgotten: then it counts from now on.

Units: tokens as the lane's counters have them, over the tenant's weight. Times are seconds of the hearer's or teller's own clock.
"""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Mapping
from heapq import nlargest
from math import inf
from typing import Final, Protocol

import msgspec

from batching.fleet import Fleet
from batching.queue import WaitingQueue
from batching.shares import WHOLE
from batching.tenant_demand import MOST_NAMED, Demand, Demands, demands, fair_parts, named

Class = tuple[str, int]  # model, and which of its lane's counters
News = dict[Class, dict[str, float]]  # by tenant, tokens over weight


class Counters(Protocol):
    """Where service is charged: the queue."""

    def collect_service(self) -> News:
        """What was served here since this was last called; the first call begins to count."""
        ...

    def serve_elsewhere(self, service: News) -> None:
        """What others have served."""
        ...


MOST_TOLD: Final = 64  # accounts in a report: it goes with others several times a second; the rest have their turn
_REFRESH_S: Final = 0.25  # a report within that of the last one says the same again
_STALE_S: Final = 3.0  # what somebody wanted is forgotten if it was not said again
_LATELY_S: Final = 60.0  # an account that has not grown for so long is closed
_MOST_ACCOUNTS: Final = 1000  # open at a time: beyond it those that grew least lately are closed
_MOST_KNOWN: Final = 4 * _MOST_ACCOUNTS  # accounts of one teller that are remembered: more than it can have open
_MOST_TELLERS: Final = 256
_SETTLED_S: Final = (
    10.0  # of a longer silence so much is settled: nobody is shut out for the hours in which others were not heard
)


class Told(msgspec.Struct, array_like=True):
    """What one process says."""

    instance: str
    age_ms: int  # since its accounts began
    last: int  # account numbers up to this one are in use
    accounts: list[tuple[str, int, list[tuple[str, int, int]]]]  # model, class, [tenant, account's number, tokens]
    demands: dict[str, dict[str, Demand]] = {}  # by model and tenant: what runs and waits there


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Told).decode


class _Account:
    __slots__ = ("grown_s", "number", "tokens", "told")

    def __init__(self, number: int) -> None:
        self.number = number
        self.tokens = 0.0
        self.told = 0.0
        self.grown_s = 0.0


class _Teller:
    """What is known of one other process."""

    __slots__ = ("began_s", "demands", "forgotten", "heard_s", "known", "words")

    def __init__(self, began_s: float, forgotten: int, now: float) -> None:
        self.began_s = began_s
        self.forgotten = forgotten  # accounts up to this number that are not known are not new
        self.known: OrderedDict[int, int] = OrderedDict()  # tokens by account, the one heard of longest ago first
        self.words = b""
        self.heard_s = now
        self.demands: Mapping[str, Demands] = {}

    def news(self, told: Told, now: float) -> News:
        """What has come since it was last heard."""
        found: News = {}
        ratio = min(1.0, _SETTLED_S / max(now - self.heard_s, _SETTLED_S))
        for model, number_of_class, accounts in told.accounts:
            grown: dict[str, float] = {}
            for tenant, number, tokens in accounts:
                before = self.known.get(number, tokens if number <= self.forgotten else 0)
                self.known[number] = max(tokens, before)
                self.known.move_to_end(number)
                if tokens > before:
                    grown[tenant] = ratio * (tokens - before)
            if grown:
                found[model, number_of_class] = grown
        while len(self.known) > _MOST_KNOWN:
            self.forgotten = max(self.forgotten, self.known.popitem(last=False)[0])
        return found


class Service:
    """One process's part. It counts from the first `tell` on: where nobody else serves, nothing is kept."""

    def __init__(self, counters: Counters, demands: Callable[[], Mapping[str, Demands]] = dict) -> None:
        """`demands`: what runs and waits here now, by model that somebody waits for and by tenant."""
        self._counters = counters
        self._demands = demands
        self._fair: dict[str, int] = {}  # parts, by model that somebody waits for here
        self._accounts: dict[tuple[Class, str], _Account] = {}
        self._last = 0  # account's number
        self._words = b""
        self._told_s = -inf
        self._began_s: float | None = None
        self._since_s = inf  # a teller that began before is not new, if it is not known
        self._tellers: OrderedDict[str, _Teller] = OrderedDict()  # by instance, the one heard longest ago first

    # -- what is said ------------------------------------------------------------------------------------------------

    def tell(self, instance: str, now: float) -> bytes:
        """A few KB. `instance`: of this process, like no other's before it or beside it."""
        if now < self._told_s + _REFRESH_S:
            return self._words
        began_s = self._begin(now)
        for class_, by_tenant in self._counters.collect_service().items():
            for tenant, tokens in by_tenant.items():
                self._grow((class_, tenant), tokens, now)
        self._close(now)
        told: defaultdict[Class, list[tuple[str, int, int]]] = defaultdict(list)
        open_ = self._accounts.items()
        for (class_, tenant), account in nlargest(MOST_TOLD, open_, key=lambda entry: _urgency(entry[1])):
            account.told = account.tokens
            told[class_].append((tenant, account.number, int(account.tokens)))
        own = self._demands()
        self._weigh(own, now)
        listed = [(model, number, accounts) for (model, number), accounts in told.items()]
        self._told_s = now
        told_demands = {model: named(of_model, MOST_NAMED // len(own)) for model, of_model in own.items()}
        self._words = _encode(Told(instance, int(1000 * (now - began_s)), self._last, listed, told_demands))
        return self._words

    def fair_parts(self, model: str) -> int:
        """Of all replicas of a model, what the tenants here should have together, by the last `tell`."""
        return self._fair.get(model, WHOLE)

    def _weigh(self, own: Mapping[str, Demands], now: float) -> None:
        heard = [teller.demands for teller in self._tellers.values() if now < teller.heard_s + _STALE_S]
        self._fair = {
            model: fair_parts(mine, (theirs.get(model, {}) for theirs in heard)) for model, mine in own.items()
        }

    def _begin(self, now: float) -> float:
        if self._began_s is None:
            self._began_s = now
            self._since_s = min(self._since_s, now)
        return self._began_s

    def _grow(self, key: tuple[Class, str], tokens: float, now: float) -> None:
        account = self._accounts.get(key)
        if account is None:
            self._last += 1
            account = self._accounts[key] = _Account(self._last)
        account.tokens += tokens
        account.grown_s = now

    def _close(self, now: float) -> None:
        self._accounts = {k: a for k, a in self._accounts.items() if now < a.grown_s + _LATELY_S}
        if len(self._accounts) > _MOST_ACCOUNTS:
            kept = nlargest(_MOST_ACCOUNTS, self._accounts.items(), key=lambda entry: _urgency(entry[1]))
            self._accounts = dict(kept)

    # -- what is heard -----------------------------------------------------------------------------------------------

    def hear(self, words: Iterable[bytes], now: float) -> None:
        """What others say, each in a whole message; what they said before may be among it, again."""
        self._since_s = min(self._since_s, now)
        total: News = {}
        for said in words:
            for class_, grown in self._news(said, now).items():
                by_tenant = total.setdefault(class_, {})
                for tenant, tokens in grown.items():
                    by_tenant[tenant] = by_tenant.get(tenant, 0.0) + tokens
        if total:
            self._counters.serve_elsewhere(total)

    def _news(self, said: bytes, now: float) -> News:
        try:
            told = _decode(said)
        except msgspec.DecodeError:
            return {}  # another version's
        teller = self._tellers.get(told.instance)
        if teller is None:
            began_s = now - told.age_ms / 1000
            teller = _Teller(began_s, told.last if began_s < self._since_s else 0, now)
            self._tellers[told.instance] = teller
        self._tellers.move_to_end(told.instance)
        news = {} if said == teller.words else teller.news(told, now)
        teller.words, teller.heard_s, teller.demands = said, now, told.demands
        while len(self._tellers) > _MOST_TELLERS:
            self._since_s = max(self._since_s, self._tellers.popitem(last=False)[1].began_s)
        return news


def service_of(fleet: Fleet, queue: WaitingQueue) -> Service:
    """A scheduler's."""
    return Service(queue, lambda: demands(fleet, queue))


def _urgency(account: _Account) -> tuple[float, float]:
    """Who has most that was not told goes first, then who was served last."""
    return account.tokens - account.told, account.grown_s
