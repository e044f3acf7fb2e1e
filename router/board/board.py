"""What one gateway knows, gathered: its own part for whoever asks, and the document of all workers together.

Reads only; once a second, and when somebody looks. What a figure means is said by the modules it calls.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec

from batching.replica import ReplicaState
from batching.request import ReplicaId
from batching.scheduler import Scheduler
from config.prices import on_demand_usd_per_hour
from metrics.catalog import Metrics
from router.board.cards import Facts, cards, money
from router.board.changes import latest_pulses
from router.board.document import Live, QueueRow
from router.board.feed import Feed
from router.board.part import Held, Part, Wanted, rows_together, together
from router.board.placements import PlacementLines
from router.board.pulse import Rate, Recorder, Totals, pulse, totals, until_next
from router.crew import Crew
from router.decision_documents import Pseudonyms
from router.decision_log import DecisionLog
from router.farewell import Farewells
from router.watched import Watched

_SAME_S: Final = 0.5  # that a part is good for, when several workers have viewers
_STILL: Final = Rate()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where everything comes from."""

    version: str
    started_unix_s: float
    scheduler: Scheduler
    metrics: Metrics
    decisions: DecisionLog
    farewells: Farewells
    names: Pseudonyms  # the same in all workers, so that a tenant's rows are one
    watched: Callable[[], Sequence[Watched]]
    circuit: Callable[[ReplicaId], str]
    draining: Callable[[], bool]
    crew: Callable[[], Crew | None]


class Board:
    """`run` inside the gateway's task group; `feed` is what viewers join."""

    def __init__(self, sources: Sources) -> None:
        self._from = sources
        self._lines = PlacementLines()
        self._recorder: Recorder | None = None
        self._unix_at_zero = 0.0  # the wall's time at the loop's zero, as it was at the start
        self._told: tuple[float, Wanted, bytes] | None = None  # the last part that was given away
        self.feed = Feed(self.look)

    async def run(self) -> None:
        """A second at a time, until it is cancelled; viewers are served beside."""
        loop = asyncio.get_running_loop()
        self._unix_at_zero = datetime.now(UTC).timestamp() - loop.time()
        self._recorder = Recorder(self._totals, loop.time())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.feed.run(), name="board-feed")
            while True:
                await asyncio.sleep(until_next(loop.time()))
                self._recorder.tick(loop.time())

    async def look(self, known: Live | None) -> Live:
        """The whole document. `known`: the last one, whose pulses need not be told again."""
        now = asyncio.get_running_loop().time()
        since_s = None
        if known is not None and known.pulses:
            since_s = round(known.pulses[-1].unix_s - self._unix_at_zero)
        wanted, crew = Wanted(since_s), self._from.crew()
        parts = [] if crew is None else await crew.parts(wanted)
        states = self._from.scheduler.states(now, briefly=True)
        whole = together(parts or [self.part(wanted, states)])
        shown = cards(states, self._facts(), whole.held)
        blocks = sum(card.kv_blocks or 0 for card in shown)
        new = (pulse(second, unix_at_zero=self._unix_at_zero, kv_blocks=blocks) for second in whole.seconds)
        pulses = latest_pulses((*(() if known is None else known.pulses), *new))
        return Live(
            whole=True,
            unix_s=round(self._unix_at_zero + now, 3),
            started_unix_s=whole.started_unix_s,
            penstock=self._from.version,
            draining=whole.draining,
            workers=whole.workers,
            replicas=tuple(shown),
            queue=whole.queue,
            pulses=pulses,
            money=money(shown, pulses),
            placements=whole.placements,
        )

    def told(self, wanted: Wanted) -> bytes:
        """The part of this worker, for the way to another."""
        now = asyncio.get_running_loop().time()
        if self._told is not None:
            made_s, asked, data = self._told
            if asked == wanted and 0 <= now - made_s < _SAME_S and int(now) == int(made_s):
                return data
        data = msgspec.msgpack.encode(self.part(wanted, self._from.scheduler.states(now, briefly=True)))
        self._told = now, wanted, data
        return data

    def part(self, wanted: Wanted, states: Sequence[ReplicaState]) -> Part:
        """Of this worker, up to the second that has ended by now."""
        now, source, recorder = asyncio.get_running_loop().time(), self._from, self._recorder
        rates: dict[ReplicaId, Rate] = {}
        if recorder is not None:
            recorder.tick(now)
            rates = recorder.rates()
        return Part(
            started_unix_s=source.started_unix_s,
            draining=source.draining(),
            held=self._held(states, rates),
            queue=self._queue(now),
            seconds=() if recorder is None else recorder.seconds(wanted.since_s),
            placements=self._lines.last(source.decisions.ledger, self._unix_at_zero),
        )

    def _held(self, states: Sequence[ReplicaState], rates: dict[ReplicaId, Rate]) -> dict[str, Held]:
        found: dict[str, Held] = {}
        for state in states:
            replica = state.profile.id
            rate, circuit = rates.get(replica, _STILL), self._from.circuit(replica)
            if state.running or state.held_blocks or state.foreign_blocks or rate is not _STILL or circuit != "closed":
                found[replica] = Held(
                    state.running,
                    state.held_blocks,
                    state.reserved_blocks,
                    state.foreign_blocks,
                    rate.output_tokens_per_s,
                    rate.input_tokens_per_s,
                    circuit,
                )
        return found

    def _queue(self, now: float) -> tuple[QueueRow, ...]:
        names = self._from.names
        return rows_together(
            QueueRow(
                model=row.model,
                service_tier=row.service_tier.label,
                tenant=names.tenant(row.tenant or ""),
                depth=row.depth,
                tokens=row.tokens,
                oldest_s=round(row.oldest_age_s, 2),
            )
            for row in self._from.scheduler.queue_statistics(now, by_tenant=True)
        )

    def _facts(self) -> dict[str, Facts]:
        found: dict[str, Facts] = {}
        there = self._from.watched()
        on_demand = on_demand_usd_per_hour(watched.config for watched in there)
        for watched in there:
            replica = watched.id
            standing, reason, deadline_unix_s = self._from.farewells.standing(replica), None, None
            if standing is not None:
                reason = standing.kind.value
                if standing.deadline_s is not None:
                    deadline_unix_s = round(self._unix_at_zero + standing.deadline_s, 1)
            found[replica] = Facts(
                str(watched.config.backend), watched.why, reason, deadline_unix_s, on_demand[watched.config.name]
            )
        return found

    def _totals(self) -> Totals:
        scheduler = self._from.scheduler
        return totals(self._from.metrics, scheduler.counts(), scheduler.queued)
