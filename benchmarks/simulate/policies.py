"""Who decides where a request goes: Penstock's scheduler, or one of two routers without a queue, for comparison.

The baselines are given perfect knowledge of what they counted (requests in flight) and no other.
"""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from batching.replica import EngineLoad, Lifecycle, ReplicaProfile
from batching.request import Outcome, Rejected, ReplicaId, Request, RequestId
from batching.scheduler import Scheduler
from batching.ticket import Lease, Placed
from benchmarks.simulate.trace import PREFIX_BLOCK_TOKENS, Call
from config.schema import Config


class Sent(NamedTuple):
    """Request `number` goes to a replica now."""

    number: int
    replica: ReplicaId


class Refused(NamedTuple):
    """Request `number` will not be served."""

    number: int
    reason: str


Decided = Sent | Refused


class Policy(Protocol):
    """Told every event with its time, in order; decides in `advance`, which follows every event but `tokens`."""

    def arrive(self, number: int, call: Call, now: float) -> None: ...

    def first_token(self, number: int, now: float) -> None: ...

    def tokens(self, number: int, emitted: int, now: float) -> None: ...

    def finish(self, number: int, now: float, usage: "Usage | None") -> None:
        """`usage` None: the engine refused it."""

    def observe(self, replica: ReplicaId, load: EngineLoad, now: float) -> None: ...

    def advance(self, now: float) -> list[Decided]: ...

    def next_deadline(self) -> float | None: ...


class Usage(NamedTuple):
    """What an engine says at the end of an answer, in tokens."""

    prompt: int
    cached: int
    output: int


class Penstock:
    """The gateway's own scheduler. It is not told how long an answer will be, only `max_output_tokens`."""

    def __init__(
        self, config: Config, profiles: Iterable[ReplicaProfile], *, model: str, max_output_tokens: int | None
    ) -> None:
        self._scheduler = Scheduler(config.scheduling, config.queue, stale_after_s=config.probe.stale_after_s)
        for profile in profiles:
            self._scheduler.add_replica(profile, Lifecycle.READY, 0.0)
        self._model = model
        self._max_output_tokens = max_output_tokens
        self._max_wait_s = config.queue.max_wait_s
        self._refused: list[Decided] = []
        self._leases: dict[int, Lease] = {}

    def arrive(self, number: int, call: Call, now: float) -> None:
        whole_blocks = call.prompt_tokens // PREFIX_BLOCK_TOKENS
        request = Request(
            id=RequestId(str(number)),
            model=self._model,
            arrived_s=now,
            prompt_tokens=call.prompt_tokens,
            max_output_tokens=self._max_output_tokens,
            deadline_s=now + self._max_wait_s,
            prefix_hashes=call.prefix_blocks[:whole_blocks],
            prefix_chunk_tokens=PREFIX_BLOCK_TOKENS,
        )
        try:
            self._scheduler.submit(request, now)
        except Rejected as rejected:
            self._refused.append(Refused(number, rejected.reason.value))

    def first_token(self, number: int, now: float) -> None:
        self._scheduler.on_first_token(self._leases[number].id, now)

    def tokens(self, number: int, emitted: int, now: float) -> None:
        self._scheduler.on_tokens(self._leases[number].id, emitted, now)

    def finish(self, number: int, now: float, usage: Usage | None) -> None:
        lease = self._leases.pop(number).id
        if usage is None:
            self._scheduler.finish(lease, now, outcome=Outcome.FAILED)
            return
        self._scheduler.finish(
            lease,
            now,
            outcome=Outcome.COMPLETED,
            prompt_tokens=usage.prompt,
            cached_tokens=usage.cached,
            output_tokens=usage.output,
        )

    def observe(self, replica: ReplicaId, load: EngineLoad, now: float) -> None:
        self._scheduler.observe(replica, load, now)

    def advance(self, now: float) -> list[Decided]:
        decided, self._refused = self._refused, []
        for decision in self._scheduler.advance(now):
            number = int(decision.ticket.request.id)
            if isinstance(decision, Placed):
                self._leases[number] = decision.lease
                decided.append(Sent(number, decision.lease.replica))
            else:
                decided.append(Refused(number, decision.reason.value))
        return decided

    def next_deadline(self) -> float | None:
        return self._scheduler.next_deadline()


class Immediate:
    """Sends on arrival; the engines queue. In turn, or (`by_load`) where fewest are in flight, in turn among equals."""

    def __init__(self, replicas: Iterable[ReplicaId], *, by_load: bool) -> None:
        self._by_load = by_load
        self._in_flight = dict.fromkeys(replicas, 0)
        self._last_turn = dict.fromkeys(self._in_flight, 0)
        self._turn = 0
        self._sent_to: dict[int, ReplicaId] = {}
        self._decided: list[Decided] = []

    def arrive(self, number: int, call: Call, now: float) -> None:  # noqa: ARG002 - looks at neither
        replica = min(self._in_flight, key=self._preference)
        self._turn += 1
        self._last_turn[replica] = self._turn
        self._in_flight[replica] += 1
        self._sent_to[number] = replica
        self._decided.append(Sent(number, replica))

    def _preference(self, replica: ReplicaId) -> tuple[int, int]:
        return (self._in_flight[replica] if self._by_load else 0, self._last_turn[replica])

    def first_token(self, number: int, now: float) -> None:
        pass

    def tokens(self, number: int, emitted: int, now: float) -> None:
        pass

    def finish(self, number: int, now: float, usage: Usage | None) -> None:  # noqa: ARG002
        self._in_flight[self._sent_to.pop(number)] -= 1

    def observe(self, replica: ReplicaId, load: EngineLoad, now: float) -> None:
        pass

    def advance(self, now: float) -> list[Decided]:  # noqa: ARG002
        decided, self._decided = self._decided, []
        return decided

    def next_deadline(self) -> float | None:
        return None
