"""The event loop of a run, in virtual time: arrivals, engine steps, tokens on their way, probes and the policy's deadlines.

Open loop: arrival times are the trace's, however late the answers are. Decides nothing that a policy or an engine decides.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from typing import Any, Final

from backends.simulated.engine import Emission, EngineBusy
from backends.simulated.kv_cache import BlockHash
from backends.simulated.sequence import EngineSequence
from batching.replica import EngineLoad
from batching.request import ReplicaId
from benchmarks.simulate.fleet import Machine
from benchmarks.simulate.policies import Policy, Refused, Sent, Usage
from benchmarks.simulate.trace import PREFIX_BLOCK_TOKENS, Call

# One way between gateway and engine, the gateway's own work included (docs/benchmarks.md). It costs the queueing policy
# what it costs in life: a slot freed by a finished answer stays empty for one step. The baselines queue in the engine.
HOP_S: Final = 0.0005
PROBE_INTERVAL_S: Final = 1.0  # the gateway's default
# After the last arrival; whoever is not done by then has failed. Beyond any backlog the engines' queues can hold.
HORIZON_S: Final = 6 * 3600.0
GAP_RESOLUTION_S: Final = 0.0001  # gaps between tokens are counted, not kept: there are millions


class End(StrEnum):
    """How a request ended; each has exactly one."""

    COMPLETED = "completed"
    REJECTED = "rejected"  # by the policy, or too long for the engine
    FAILED = "failed"  # the engine's queue was full, or it was still open at the horizon


@dataclass(slots=True, eq=False)
class Life:
    """What became of one request. Times are the gateway's."""

    arrival_s: float
    placed_s: float | None = None
    replica: ReplicaId | None = None
    first_s: float | None = None
    last_s: float = 0.0
    tokens: int = 0
    end: End | None = None
    reason: str = ""


@dataclass(slots=True, eq=False)
class Observed:
    """What a run leaves to report."""

    lives: list[Life]
    gaps: Counter[int] = field(default_factory=Counter)  # between tokens of one answer, in GAP_RESOLUTION_S
    decisions: int = 0
    deciding_wall_s: float = 0.0
    end_s: float = 0.0


_Handler = Callable[[Any, float], None]


class Simulation:
    """One run of a trace over machines under a policy."""

    def __init__(
        self,
        calls: Sequence[Call],
        machines: Sequence[Machine],
        policy: Policy,
        *,
        max_output_tokens: int | None = None,
        wall: Callable[[], float],
    ) -> None:
        self._calls = calls
        self._machines = {machine.id: machine for machine in machines}
        self._policy = policy
        self._max_output_tokens = max_output_tokens
        self._wall = wall
        self._events: list[tuple[float, int, _Handler, Any]] = []
        self._order = count()  # ties go to what was scheduled first
        self._timer_s: float | None = None
        self._sequences: dict[int, EngineSequence] = {}
        self._open = len(calls)
        self.observed = Observed([Life(call.arrival_s) for call in calls])

    def run(self) -> Observed:
        """To the end of the last request, or to the horizon."""
        self._at(0.0, self._probe, None)
        self._at(self._calls[0].arrival_s, self._arrive, 0)
        horizon_s = self._calls[-1].arrival_s + HORIZON_S
        while self._open and self._events[0][0] <= horizon_s:
            now, _, handler, argument = heapq.heappop(self._events)
            handler(argument, now)
        for number, life in enumerate(self.observed.lives):
            if life.end is None:
                self._end(number, End.FAILED, horizon_s, "never ended")
        return self.observed

    # -- the gateway's side ------------------------------------------------------------------------------------------

    def _arrive(self, number: int, now: float) -> None:
        if number + 1 < len(self._calls):
            self._at(self._calls[number + 1].arrival_s, self._arrive, number + 1)
        began = self._wall()
        self._policy.arrive(number, self._calls[number], now)
        self.observed.deciding_wall_s += self._wall() - began
        self._advance(None, now)

    def _advance(self, _: None, now: float) -> None:
        began = self._wall()
        decided = self._policy.advance(now)
        self.observed.deciding_wall_s += self._wall() - began
        self.observed.decisions += len(decided)
        for decision in decided:
            if isinstance(decision, Sent):
                life = self.observed.lives[decision.number]
                life.placed_s, life.replica = now, decision.replica
                self._at(now + HOP_S, self._reach_engine, decision)
            else:
                self._end(decision.number, End.REJECTED, now, decision.reason)
        self._set_timer()

    def _set_timer(self) -> None:
        deadline_s = self._policy.next_deadline()
        if deadline_s is not None and deadline_s != self._timer_s:  # an outdated timer costs one idle pass
            self._timer_s = deadline_s
            self._at(deadline_s, self._advance, None)

    def _probe(self, _: None, now: float) -> None:
        for machine in self._machines.values():
            told = machine.engine.statistics()
            load = EngineLoad(
                observed_s=now,
                running=told.running,
                waiting=told.waiting,
                kv_usage_ratio=told.kv_usage_ratio,
                preemptions_total=told.preemptions_total,
                prefix_queries_total=told.prefix_queries_total,
                prefix_hits_total=told.prefix_hits_total,
            )
            self._policy.observe(machine.id, load, now)
        self._at(now + PROBE_INTERVAL_S, self._probe, None)
        self._advance(None, now)

    def _tokens_arrive(self, emissions: list[Emission], now: float) -> None:
        lives, gaps, policy = self.observed.lives, self.observed.gaps, self._policy
        room_may_grow = False
        for number, token, finish_reason in emissions:
            life = lives[number]
            if token:
                gaps[round((now - life.last_s) / GAP_RESOLUTION_S)] += 1
            else:
                life.first_s = now
                policy.first_token(number, now)
                room_may_grow = True
            life.last_s = now
            life.tokens = token + 1
            policy.tokens(number, token + 1, now)
            if finish_reason is not None:
                sequence = self._sequences.pop(number)
                policy.finish(number, now, Usage(sequence.prompt_tokens, sequence.cached_tokens or 0, token + 1))
                self._end(number, End.COMPLETED, now)
                room_may_grow = True
        if room_may_grow:
            self._advance(None, now)

    def _refuse(self, refused: Refused, now: float) -> None:
        self._policy.finish(refused.number, now, None)
        self._end(refused.number, End.FAILED if refused.reason == "engine_busy" else End.REJECTED, now, refused.reason)
        self._advance(None, now)

    def _end(self, number: int, end: End, now: float, reason: str = "") -> None:
        life = self.observed.lives[number]
        assert life.end is None, "a request ends once"
        life.end, life.reason = end, reason
        self._open -= 1
        self.observed.end_s = max(self.observed.end_s, now)

    # -- the engines' side -------------------------------------------------------------------------------------------

    def _reach_engine(self, sent: Sent, now: float) -> None:
        machine = self._machines[sent.replica]
        call = self._calls[sent.number]
        options = machine.engine.options
        # An answer ends where the context does or where the client's bound is, as in vLLM.
        limit = min(call.output_tokens, options.context_tokens - call.prompt_tokens)
        if self._max_output_tokens is not None:
            limit = min(limit, self._max_output_tokens)
        if limit < 1:
            self._at(now + HOP_S, self._refuse, Refused(sent.number, "context_length"))
            return
        sequence = EngineSequence(
            seq_id=sent.number,
            prompt_tokens=call.prompt_tokens,
            limit_tokens=limit,
            finish_reason="stop" if limit == call.output_tokens else "length",
            block_hash=_block_hash(call, options.block_size),
        )
        try:
            machine.engine.add(sequence, now)
        except EngineBusy:
            self._at(now + HOP_S, self._refuse, Refused(sent.number, "engine_busy"))
            return
        self._sequences[sent.number] = sequence
        machine.requests += 1
        if not machine.stepping:
            self._step(machine, now)

    def _step(self, machine: Machine, now: float) -> None:
        result = machine.engine.step(now)
        machine.stepping = result is not None
        if result is not None:
            machine.busy_s += result.duration_s
            self._at(now + result.duration_s, self._step_over, (machine, result.emissions))

    def _step_over(self, step: tuple[Machine, list[Emission]], now: float) -> None:
        machine, emissions = step
        if emissions:
            self._at(now + HOP_S, self._tokens_arrive, emissions)
        self._step(machine, now)

    def _at(self, time_s: float, handler: _Handler, argument: Any) -> None:
        heapq.heappush(self._events, (time_s, next(self._order), handler, argument))


def _block_hash(call: Call, block_size: int) -> BlockHash:
    """The hash of each KV block that the prompt fills; what is generated is not shared, as nobody else's prompt is known to have it."""
    blocks = call.prefix_blocks
    if not blocks:
        return _unshared
    per_hash = -(-PREFIX_BLOCK_TOKENS // block_size)  # exact where the block size divides 512, as all usual ones do
    full_blocks = min(call.prompt_tokens // block_size, len(blocks) * PREFIX_BLOCK_TOKENS // block_size)

    def block_hash(index: int) -> int | None:
        if index >= full_blocks:
            return None
        start = index * block_size
        return blocks[start // PREFIX_BLOCK_TOKENS] * per_hash + start % PREFIX_BLOCK_TOKENS // block_size

    return block_hash


def _unshared(_: int) -> int | None:
    return None
