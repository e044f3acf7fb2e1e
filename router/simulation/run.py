"""The event loop of a run, in virtual time: arrivals, engine steps, tokens on their way, probes and the queue's deadlines.

Open loop: arrival times are the trace's, however late the answers are. Decides nothing that the scheduler or an engine decides.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from operator import attrgetter
from typing import Any, Final

from backends.simulated.engine import EngineBusy, StepResult
from backends.simulated.sequence import EngineSequence
from batching.replica import Lifecycle
from batching.request import Outcome, Reason, Rejected, ReplicaId, Request, RequestId
from batching.scheduler import Scheduler
from batching.ticket import Lease, Placed
from batching.window import Window
from config.spot import Spot
from router.simulation.fleet import Machine
from router.simulation.freeze import Freeze, Reports
from router.simulation.trace import PREFIX_BLOCK_TOKENS, Call, block_hash

# One way between gateway and engine, the gateway's own work included (docs/benchmarks.md). It costs the queueing policy
# what it costs in life: a slot freed by a finished answer stays empty for one step. The baselines queue in the engine.
HOP_S: Final = 0.0005
PROBE_INTERVAL_S: Final = 1.0  # the gateway's default
# After the last arrival; whoever is not done by then has failed. Beyond any backlog the engines' queues can hold.
HORIZON_S: Final = 6 * 3600.0
GAP_RESOLUTION_S: Final = 0.0001  # gaps between tokens are counted, not kept: there are millions
_BY_NUMBER: Final = attrgetter("seq_id")
_ATTEMPTS: Final = 3  # the gateway's default for `upstream.attempts`


class End(StrEnum):
    """How a request ended; each has exactly one."""

    COMPLETED = "completed"
    REJECTED = "rejected"  # by the scheduler, or too long for the engine
    FAILED = "failed"  # the engine was full, or it vanished in mid-stream, or the request was open at the horizon


@dataclass(slots=True, eq=False)
class Life:
    """What became of one request. Times are the gateway's."""

    arrival_s: float
    placed_s: float | None = None
    replica: ReplicaId | None = None
    lease: Lease | None = None
    first_s: float | None = None
    last_s: float = 0.0
    tokens: int = 0
    cached_tokens: int = 0
    attempts: int = 0
    end: End | None = None
    reason: str = ""


@dataclass(slots=True, eq=False)
class Observed:
    """What a run leaves to report."""

    lives: list[Life]
    gaps: Counter[int] = field(default_factory=Counter)  # between tokens of one answer, in GAP_RESOLUTION_S
    kv_usage: Counter[int] = field(default_factory=Counter)  # percent of each cache at each probe while anything waited
    decisions: int = 0
    recomputed_tokens: int = 0  # prompt and output of work that was lost with a machine and done again or given up
    end_s: float = 0.0


class Watcher:
    """Is shown the run as it goes: for progress bars and plots. Overrides what it wants to see."""

    sample_every_s: float | None = None

    def ended(self, number: int, life: Life, now: float) -> None:
        """A request has ended."""

    def sample(self, simulation: "Simulation", now: float) -> None:
        """Every `sample_every_s` of virtual time."""


_Handler = Callable[[Any, float], None]


class Simulation:
    """One run of a trace over machines under a scheduler that knows nothing of them yet."""

    def __init__(
        self,
        calls: Sequence[Call],
        machines: Sequence[Machine],
        scheduler: Scheduler,
        *,
        model: str,
        max_wait_s: float,
        max_output_tokens: int | None = None,
        clairvoyant: bool = False,
        probe_interval_s: float = PROBE_INTERVAL_S,
        ours: bool = True,
        freeze: Freeze | None = None,
        watcher: Watcher | None = None,
    ) -> None:
        self.calls = calls
        self.machines = {machine.id: machine for machine in machines}
        self.scheduler = scheduler
        self._model = model
        self._max_wait_s = max_wait_s
        self._max_output_tokens = max_output_tokens
        self._clairvoyant = clairvoyant
        self._probe_interval_s = probe_interval_s
        # Told every step of an engine, and how long a machine that will go may still work: a third of the work, and no baseline asks.
        self._ours = ours
        self._margin_s = Spot().margin_s
        self._reports = Reports(freeze)
        self._watcher = watcher or Watcher()
        self._events: list[tuple[float, int, _Handler, Any]] = []
        self._order = count()  # ties go to what was scheduled first
        self._timer_s: float | None = None
        self._open = len(calls)
        self.observed = Observed([Life(call.arrival_s) for call in calls])
        for machine in machines:
            scheduler.add_replica(machine.profile, Lifecycle.READY, 0.0)

    def run(self) -> Observed:
        """To the end of the last request, or to the horizon."""
        self.at(0.0, self._probe, None)
        self.at(self.calls[0].arrival_s, self._arrive, 0)
        if self._watcher.sample_every_s is not None:
            self.at(0.0, self._sample, self._watcher.sample_every_s)
        horizon_s = self.calls[-1].arrival_s + HORIZON_S
        while self._open and self._events[0][0] <= horizon_s:
            now, _, handler, argument = heapq.heappop(self._events)
            handler(argument, now)
        for number, life in enumerate(self.observed.lives):
            if life.end is None:
                self._end(number, End.FAILED, horizon_s, "never ended")
        return self.observed

    def at(self, time_s: float, handler: _Handler, argument: Any) -> None:
        """`handler(argument, now)` is called when the clock reaches `time_s`."""
        heapq.heappush(self._events, (time_s, next(self._order), handler, argument))

    # -- the gateway's side ------------------------------------------------------------------------------------------

    def _arrive(self, number: int, now: float) -> None:
        if number + 1 < len(self.calls):
            self.at(self.calls[number + 1].arrival_s, self._arrive, number + 1)
        self._submit(number, now, frozenset())
        self.advance(None, now)

    def _submit(self, number: int, now: float, avoid: frozenset[ReplicaId]) -> None:
        call = self.calls[number]
        whole_blocks = call.prompt_tokens // PREFIX_BLOCK_TOKENS
        request = Request(
            id=RequestId(str(number)),
            model=self._model,
            arrived_s=self.observed.lives[number].arrival_s,
            fingerprint=number + 1,
            prompt_tokens=call.prompt_tokens,
            max_output_tokens=self._max_output_tokens,
            known_output_tokens=call.output_tokens if self._clairvoyant else None,
            tenant=call.tenant,
            service_tier=call.service_tier,
            deadline_s=now + (self._max_wait_s if call.max_wait_s is None else call.max_wait_s),
            prefix_hashes=call.prefix_blocks[:whole_blocks],
            prefix_chunk_tokens=PREFIX_BLOCK_TOKENS,
            avoid=avoid,
        )
        try:
            self.scheduler.submit(request, now)
        except Rejected as rejected:
            self._turned_away(number, now, rejected.reason, rejected.retry_after_s)

    def _turned_away(self, number: int, now: float, reason: Reason, retry_after_s: float | None) -> None:  # noqa: ARG002
        """Nobody in a trace comes again; others may."""
        self._end(number, End.REJECTED, now, reason.value)

    def advance(self, _: None, now: float) -> None:
        """The scheduler's turn, after any event that may have changed its mind."""
        for decision in self.scheduler.advance(now):
            self.observed.decisions += 1
            number = int(decision.ticket.request.id)
            life = self.observed.lives[number]
            if isinstance(decision, Placed):
                life.lease, life.replica = decision.lease, decision.lease.replica
                life.placed_s = now
                life.attempts += 1
                self.at(now + HOP_S, self._reach_engine, (number, decision.lease))
            else:
                self._turned_away(number, now, decision.reason, decision.retry_after_s)
        deadline_s = self.scheduler.next_deadline()
        if deadline_s is not None and deadline_s != self._timer_s:  # an outdated timer costs one idle pass
            self._timer_s = deadline_s
            self.at(deadline_s, self.advance, None)

    def _probe(self, _: None, now: float) -> None:
        for machine in self.machines.values():
            if machine.engine is not None:
                load = machine.load(now)
                if (report := self._reports.received(machine.id, load)) is not None:
                    self.scheduler.observe(machine.id, report, now)
                if self.scheduler.queued or load.waiting:
                    self.observed.kv_usage[round(100 * (load.kv_usage_ratio or 0.0))] += 1
        self.at(now + self._probe_interval_s, self._probe, None)
        self.advance(None, now)

    def _sample(self, every_s: float, now: float) -> None:
        self._watcher.sample(self, now)
        self.at(now + every_s, self._sample, every_s)

    def _tokens_arrive(self, step: "_Step", now: float) -> None:
        lives, scheduler = self.observed.lives, self.scheduler
        told = step.grown if step.leader is None else [step.leader, *step.grown]
        for number, tokens in told:
            lease = self._lease(number, step)
            if lease is not None:
                scheduler.on_tokens(lease.id, tokens, now)
        for number in step.first:
            lease = self._lease(number, step)
            if lease is not None:
                if lives[number].first_s is None:
                    lives[number].first_s = lives[number].last_s = now
                scheduler.on_first_token(lease.id, now)
        for sequence in step.finished:
            self._complete(sequence, now)
        if step.first or step.finished or scheduler.stirred:
            self.advance(None, now)

    def _lease(self, number: int, step: "_Step") -> Lease | None:
        """What these tokens are for; None: the machine vanished while they were on their way."""
        life = self.observed.lives[number]
        return life.lease if life.replica == step.replica else None

    def _complete(self, sequence: EngineSequence, now: float) -> None:
        life = self.observed.lives[sequence.seq_id]
        if life.lease is None:
            return
        life.tokens = sequence.limit_tokens
        life.cached_tokens = sequence.cached_tokens or 0
        life.last_s = now
        self.scheduler.on_tokens(life.lease.id, life.tokens, now)
        self.scheduler.finish(
            life.lease.id,
            now,
            outcome=Outcome.COMPLETED,
            prompt_tokens=sequence.prompt_tokens,
            cached_tokens=life.cached_tokens,
            output_tokens=life.tokens,
        )
        self._end(sequence.seq_id, End.COMPLETED, now)

    def _refuse(self, refused: tuple[int, End, str], now: float) -> None:
        number, end, reason = refused
        lease = self.observed.lives[number].lease
        if lease is not None:
            self.scheduler.finish(lease.id, now, outcome=Outcome.FAILED)
        self._end(number, end, now, reason)
        self.advance(None, now)

    def _end(self, number: int, end: End, now: float, reason: str = "") -> None:
        life = self.observed.lives[number]
        assert life.end is None, "a request ends once"
        life.end, life.reason, life.lease = end, reason, None
        self._open -= 1
        self.observed.end_s = max(self.observed.end_s, now)
        self._watcher.ended(number, life, now)

    # -- the engines' side -------------------------------------------------------------------------------------------

    def _reach_engine(self, sent: tuple[int, Lease], now: float) -> None:
        number, lease = sent
        life, call, machine = self.observed.lives[number], self.calls[number], self.machines[lease.replica]
        if life.lease is not lease:
            return  # the machine vanished while the request was on its way
        if machine.engine is None:
            self._lost(number, now)
            return
        options = machine.engine.options
        # An answer ends where the context does or where the client's bound is, as in vLLM.
        limit = min(call.output_tokens, options.context_tokens - call.prompt_tokens)
        if self._max_output_tokens is not None:
            limit = min(limit, self._max_output_tokens)
        if limit < 1:
            self.at(now + HOP_S, self._refuse, (number, End.REJECTED, "context_length"))
            return
        sequence = EngineSequence(
            seq_id=number,
            prompt_tokens=call.prompt_tokens,
            limit_tokens=limit,
            finish_reason="stop" if limit == call.output_tokens else "length",
            block_hash=block_hash(call, options.block_size),
        )
        try:
            machine.engine.add(sequence, now)
        except EngineBusy:
            self.at(now + HOP_S, self._refuse, (number, End.FAILED, "engine_busy"))
            return
        machine.begin(number, now)
        if not machine.stepping:
            self._step(machine, now)

    def _step(self, machine: Machine, now: float) -> None:
        assert machine.engine is not None
        result = machine.engine.step(now)
        machine.stepping = result is not None
        if result is not None:
            machine.step(result.duration_s)
            self.at(now + result.duration_s, self._step_over, (machine, machine.engine, self._taken(machine, result)))

    def _taken(self, machine: Machine, result: StepResult) -> "_Step":
        told = None
        if self._ours:
            leader = machine.leader
            if leader is not None and leader.generated_tokens < leader.limit_tokens:
                told = leader.seq_id, leader.generated_tokens
            else:
                machine.leader = min((*result.first, *result.grown), key=_BY_NUMBER, default=None)
        return _Step(
            machine.id,
            [sequence.seq_id for sequence in result.first],
            # The engine names them in no particular order; a run is a function of its seed.
            sorted((sequence.seq_id, sequence.generated_tokens) for sequence in result.grown) if result.grown else [],
            result.finished,
            result.decoded,
            told,
        )

    def _step_over(self, over: tuple[Machine, object, "_Step"], now: float) -> None:
        machine, engine, step = over
        if machine.engine is not engine:
            return  # it was taken away in the middle of the step
        if step.decoded:
            self.observed.gaps[round((now + HOP_S - machine.last_tokens_s) / GAP_RESOLUTION_S)] += step.decoded
        machine.last_tokens_s = now + HOP_S
        for sequence in step.finished:
            machine.end(sequence.seq_id, now)
        if step.leader or step.grown or step.first or step.finished:
            self.at(now + HOP_S, self._tokens_arrive, step)
        self._step(machine, now)

    # -- machines that come and go -----------------------------------------------------------------------------------

    def notice(self, told: tuple[ReplicaId, float], now: float) -> None:
        """(replica, when it will be taken away). New work only where it will surely have ended; what runs may end."""
        replica, ends_s = told
        self.scheduler.set_lifecycle(replica, Lifecycle.RECLAIMING, now)
        if self._ours:
            self.scheduler.set_window(replica, Window(max(now, ends_s - self._margin_s)), now)
        self.advance(None, now)

    def take(self, replica: ReplicaId, now: float) -> None:
        """It is gone, with everything it held: what had no token yet is placed again, what had is lost."""
        machine = self.machines[replica]
        machine.vanish(now)
        self.scheduler.set_lifecycle(replica, Lifecycle.DOWN, now)
        for number in sorted(machine.clear()):
            self._lost(number, now)
        self.advance(None, now)

    def give_back(self, replica: ReplicaId, now: float) -> None:
        """It is there again, its cache empty."""
        self.machines[replica].appear(now)
        self.scheduler.set_window(replica, None, now)
        self.scheduler.set_lifecycle(replica, Lifecycle.READY, now)
        self.advance(None, now)

    def _lost(self, number: int, now: float) -> None:
        life = self.observed.lives[number]
        lease, life.lease = life.lease, None
        if lease is None or life.end is not None:
            return
        self.scheduler.finish(lease.id, now, outcome=Outcome.FAILED)
        self.observed.recomputed_tokens += self.calls[number].prompt_tokens
        if life.first_s is not None or life.attempts >= _ATTEMPTS:
            self._end(number, End.FAILED, now, "replica_lost")
        else:
            self._submit(number, now, frozenset({lease.replica}))


@dataclass(slots=True, eq=False)
class _Step:
    """What a step brings to the gateway, as it stood when the step began: the engine moves on before it arrives."""

    replica: ReplicaId
    first: list[int]
    grown: list[tuple[int, int]]
    finished: list[EngineSequence]
    decoded: int  # for how many it is not the first
    leader: tuple[int, int] | None  # one stream of the batch and its tokens: it tells the engine's pace at every step
