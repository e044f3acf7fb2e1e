"""Who goes where under a baseline: requests in order of arrival, each to the replica that the policy names, or held.

Stands where `batching.filling` stands under our own rule. Checks no budget: the originals do not, and their engines queue.
"""

from itertools import count

from batching.decisions import Decisions
from batching.estimators import Estimators
from batching.fleet import Fleet
from batching.lane import Lane, Waiting
from batching.ledger import LeaseRecord
from batching.placement import Need, Placement, Score, could_ever_hold, reserved_output
from batching.policies.policy import Candidate, Policy
from batching.queue import WaitingQueue
from batching.request import ReplicaId, Request
from batching.ticket import Lease, LeaseId, Placed, TicketState
from config.schema import CostTier


class Dispatching:
    """Asks the policy about the head of each model's queue until it holds one. `evaluations` counts candidates shown."""

    def __init__(
        self,
        policy: Policy,
        queue: WaitingQueue,
        fleet: Fleet,
        estimators: Estimators,
        decisions: Decisions | None = None,
    ) -> None:
        self.policy = policy
        self._queue = queue
        self._fleet = fleet
        self._estimators = estimators
        self._lease_ids = count(1)
        self._decisions = decisions
        self.evaluations = 0

    def need(self, request: Request, ticket: int) -> Need:
        """Only what a lease must know: a baseline forecasts nothing."""
        length = self._estimators.outputs.forecast(request.model, request.max_output_tokens)
        return Need(
            request=request,
            ticket=ticket,
            forecast_tokens=length.reserve,
            expected_tokens=length.average,
            ttft_objective_s=float("inf"),
            tpot_objective_s=float("inf"),
        )

    def late_at_s(self, need: Need, now: float) -> float | None:  # noqa: ARG002
        """No baseline orders by objectives."""
        return None

    def fill(self, now: float) -> list[Placed]:
        """Every event may change a policy's mind, so every head is asked each time: O(models) while all are held."""
        self._fleet.grown_models = set()
        self._queue.arrived.clear()
        placed: list[Placed] = []
        for lane in self._queue.lanes.values():
            lane.fresh.clear()
            lane.grown = False
            while lane.size and (done := self._next(lane, now)) is not None:
                placed.append(done)
        return placed

    def release(self, waiting: Waiting) -> None:
        """Nothing is ever protected for a head."""

    def _next(self, lane: Lane, now: float) -> Placed | None:
        waiting = self._queue.first(lane.model)
        need = waiting.need
        candidates = [
            Candidate(live.profile, live.load)
            for live in sorted(self._fleet.serving(lane.model), key=lambda live: live.profile.id)
            if live.offer.open
            and (live.offer.window is None or not live.offer.window.closes)  # the originals know of no deadline
            and could_ever_hold(need.request, live.offer, min_output_tokens=need.min_output_tokens)
        ]
        self.evaluations += len(candidates)
        replica = self.policy.choose(need.request, candidates, now) if candidates else None
        return None if replica is None else self._commit(waiting, replica, len(candidates), now)

    def _commit(self, waiting: Waiting, replica: ReplicaId, considered: int, now: float) -> Placed:
        request, live = waiting.need.request, self._fleet[replica]
        record = LeaseRecord(
            lease=Lease(id=LeaseId(next(self._lease_ids)), replica=replica, request=request),
            placed_s=now,
            rank=waiting.rank,
            block_size=live.block_size,
            prefill_tokens=request.prompt_tokens,
            believed_cached_tokens=0,
            forecast_tokens=reserved_output(waiting.need, live.offer),
            ttft_s=0.0,
            tpot_s=0.0,
        )
        placement = _placement(replica, live.profile.cost_tier, considered)
        if self._decisions is not None:
            offers = [other.offer for other in self._fleet.serving(request.model) if other.offer.open]
            self._decisions.placed(record, waiting.need, offers, placement, waiting.ticket.queued_s)
        self._queue.leave(waiting, TicketState.PLACED)
        self._fleet.open(record, None if request.streaming else now)
        self._estimators.note_placed(request.model, now)
        self.policy.placed(request, replica, now)
        return Placed(ticket=waiting.ticket, placement=placement, lease=record.lease, decided_s=now)


def _placement(replica: ReplicaId, cost_tier: CostTier, considered: int) -> Placement:
    """A baseline predicts nothing and gives no reason."""
    score = Score(
        replica=replica,
        ttft_s=0.0,
        tpot_s=0.0,
        usd=0.0,
        cached_tokens=0,
        headroom_blocks=None,
        meets_objective=True,
    )
    return Placement(replica=replica, cost_tier=cost_tier, reason="policy", score=score, considered=considered)
