"""One placement as it was made: what was asked, what each candidate offered, what was chosen and what came of it.

Values are kept as bare tuples in the order of the field lists below, taken while the decision is made and named when somebody
reads them, so that keeping a record costs next to nothing. Counts and hashes only: no words of a prompt or an answer.
A record can be decided again: `decide_again` calls the same `place` on the same values.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any, Final

from batching.audit import Forecast, Judged, Sample, judge, named
from batching.estimators import KnownLength
from batching.ledger import LeaseRecord
from batching.offer import Offer
from batching.placement import Need, Placement, Score, place
from batching.request import Outcome, ReplicaId, Request

PREFIX_TOKENS: Final = (
    512  # a prompt's hashes are thinned to one for so many tokens, the granularity of published traces
)
_MAX_CHUNKS: Final = 1024  # of a prompt's hashes, as in the prefix index: a record stays small whatever the prompt

# Bookkeeping between passes, and what `known_free_tokens` is made from: a decision that did not ask for it did not need it.
_OFFER_EXTRAS: Final = frozenset({"epoch", "wanted_due_s", "forecast", "told"})
OFFER_FIELDS: Final = tuple(f.name for f in fields(Offer) if f.name not in _OFFER_EXTRAS)
NEED_FIELDS: Final = tuple(f.name for f in fields(Need) if f.name not in {"request", "lengths", "cached_tokens"})
REQUEST_FIELDS: Final = tuple(f.name for f in fields(Request) if f.name not in {"prefix_hashes", "bill"})

offer_values = attrgetter(*OFFER_FIELDS)
need_values = attrgetter(*NEED_FIELDS)
request_values = attrgetter(*REQUEST_FIELDS)
_FREE: Final = next(i for i, name in enumerate(OFFER_FIELDS) if name.endswith("free_tokens"))

Values = tuple[Any, ...]


def told(offers: Iterable[Offer]) -> tuple[Values, ...]:
    """The values of each; whoever has not changed since the last record shares them with it."""
    found: list[Values] = []
    for offer in offers:
        values = offer.told
        if values is None:
            values = offer.told = offer_values(offer)
        found.append(values)
    return tuple(found)


@dataclass(init=False, slots=True)
class Ended:
    """What came of it, so far or in the end. Seconds on the loop's clock; tokens of all sequences together. None: not known."""

    outcome: Outcome | None  # None: it runs
    finished_s: float | None
    first_token_s: float | None
    last_token_s: float | None
    emitted_tokens: int  # as counted here
    prompt_tokens: int | None  # these three as the engine reported them
    cached_tokens: int | None
    output_tokens: int | None

    def __init__(
        self,
        outcome: Outcome | None,
        finished_s: float | None,
        first_token_s: float | None,
        last_token_s: float | None,
        emitted_tokens: int,
        prompt_tokens: int | None = None,
        cached_tokens: int | None = None,
        output_tokens: int | None = None,
    ) -> None:
        self.outcome = outcome
        self.finished_s = finished_s
        self.first_token_s = first_token_s
        self.last_token_s = last_token_s
        self.emitted_tokens = emitted_tokens
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = cached_tokens
        self.output_tokens = output_tokens

    @property
    def tokens(self) -> int:
        """Output, by the better source."""
        return self.emitted_tokens if self.output_tokens is None else self.output_tokens


@dataclass(init=False, slots=True, eq=False)
class DecisionRecord:
    """Written once by `batching.decisions`, but for `lease` and `ended`."""

    queued_s: float
    placed_s: float
    asked_for: Values | None  # REQUEST_FIELDS; None: its lease still has the request
    prefix: tuple[int, ...]  # chained hashes, one for each PREFIX_TOKENS of the prompt
    need: Values  # NEED_FIELDS
    cached_tokens: Mapping[ReplicaId, int]  # believed, before trust in the belief
    survival: tuple[float, ...] | None  # of answers of this kind, where a forecast of KV growth was asked for
    offers: tuple[Values, ...]  # OFFER_FIELDS, of the candidates kept
    left_out: int  # candidates tested and not kept
    hold: bool  # None was an allowed answer
    by_cost: bool
    placement: Placement
    forecast: Forecast | None  # what was predicted, without the audit's say; None: nothing
    lease: LeaseRecord | None  # while it runs
    ended: Ended | None

    def __init__(
        self,
        queued_s: float,
        placed_s: float,
        asked_for: Values | None,
        prefix: tuple[int, ...],
        need: Values,
        cached_tokens: Mapping[ReplicaId, int],
        survival: tuple[float, ...] | None,
        offers: tuple[Values, ...],
        left_out: int,
        hold: bool,
        by_cost: bool,
        placement: Placement,
        forecast: Forecast | None,
        lease: LeaseRecord | None = None,
        ended: Ended | None = None,
    ) -> None:
        self.queued_s = queued_s
        self.placed_s = placed_s
        self.asked_for = asked_for
        self.prefix = prefix
        self.need = need
        self.cached_tokens = cached_tokens
        self.survival = survival
        self.offers = offers
        self.left_out = left_out
        self.hold = hold
        self.by_cost = by_cost
        self.placement = placement
        self.forecast = forecast
        self.lease = lease
        self.ended = ended

    @property
    def request(self) -> Values:
        """REQUEST_FIELDS."""
        if self.asked_for is not None:
            return self.asked_for
        assert self.lease is not None, "a record has its lease until it has ended"
        values: Values = request_values(self.lease.lease.request)
        return values

    @property
    def request_id(self) -> str:
        return str(self.asked("id"))

    @property
    def replica(self) -> ReplicaId:
        return self.placement.replica

    @property
    def by_policy(self) -> bool:
        """Another router's rule decided, by counters of its own that no record holds."""
        return self.placement.reason == "policy"

    def asked(self, name: str) -> Any:
        """One field of the request."""
        return self.request[REQUEST_FIELDS.index(name)]

    def needed(self, name: str) -> Any:
        """One field of the need."""
        return self.need[NEED_FIELDS.index(name)]

    def end(self) -> Ended:
        """What is known of its end by now."""
        if self.ended is not None:
            return self.ended
        lease = self.lease
        if lease is None:
            return Ended(None, None, None, None, 0)
        return Ended(None, None, lease.first_token_s, lease.last_token_s, lease.emitted_tokens)

    def __repr__(self) -> str:
        return f"<DecisionRecord {self.request_id} on {self.replica}, {len(self.offers)} candidates>"


def thinned(hashes: Sequence[int], chunk_tokens: int) -> tuple[int, ...]:
    """The hash that ends each PREFIX_TOKENS of a prompt; they are chained, so that each stands for all before it."""
    if not hashes:
        return ()
    every = max(1, round(PREFIX_TOKENS / chunk_tokens)) if chunk_tokens else 1
    return tuple(hashes[every - 1 : _MAX_CHUNKS : every])


def survival_asked(need: Need, offers: Sequence[Values]) -> tuple[float, ...] | None:
    """How such answers go on, if any candidate's forecast of growth was looked at."""
    if need.lengths is None:
        return None
    for values in offers:
        if values[_FREE] is not None:
            return tuple(need.lengths.survival(0, need.output_bound))
    return None


class _Recorded(KnownLength):
    """What was known of an answer's length, as it was looked at."""

    __slots__ = ("_survival",)

    def __init__(self, survival: tuple[float, ...]) -> None:
        super().__init__(0)
        self._survival = survival

    def survival(self, emitted: int, bound: int) -> tuple[float, ...]:  # noqa: ARG002
        return self._survival


def need_of(record: DecisionRecord) -> Need:
    """The need as it was."""
    return Need(
        request=Request(**dict(zip(REQUEST_FIELDS, record.request, strict=True))),
        lengths=None if record.survival is None else _Recorded(record.survival),
        cached_tokens=record.cached_tokens,
        **dict(zip(NEED_FIELDS, record.need, strict=True)),
    )


def offers_of(record: DecisionRecord) -> list[Offer]:
    """The candidates' offers as they were, new objects each time."""
    return [Offer(**dict(zip(OFFER_FIELDS, values, strict=True))) for values in record.offers]


def decide_again(record: DecisionRecord) -> Placement | None:
    """What the present code chooses from the recorded candidates."""
    return place(need_of(record), offers_of(record), record.placed_s, hold=record.hold, by_cost=record.by_cost)


def score_on(record: DecisionRecord, offer: Offer) -> Score | None:
    """What this candidate alone would have come to; None: there was no room for it."""
    placement = place(need_of(record), (offer,), record.placed_s)
    return None if placement is None else placement.score


def judged(record: DecisionRecord) -> list[Judged]:
    """`samples`, for people."""
    return named(samples(record))


def samples(record: DecisionRecord) -> list[Sample]:
    """What can be said of a request that was answered in full; nothing of others, or where another rule decided."""
    end, forecast = record.ended, record.forecast
    if end is None or end.outcome is not Outcome.COMPLETED or end.finished_s is None or forecast is None:
        return []
    return judge(
        forecast,
        placed_s=record.placed_s,
        first_token_s=end.first_token_s,
        last_token_s=end.last_token_s,
        finished_s=end.finished_s,
        tokens=-(-end.tokens // record.asked("sequences")),
        cached_tokens=end.cached_tokens,
    )
