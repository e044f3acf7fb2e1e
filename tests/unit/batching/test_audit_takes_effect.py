"""The audit's say in what a replica offers: what was learned counts for as much as it has earned, and is judged without that."""

import pytest

from batching.audit import Signal
from batching.request import Outcome, ReplicaId
from batching.scheduler import Scheduler
from config.schema import Queue, Scheduling
from tests.support.decisions import Kept
from tests.support.scheduling import leases, profile, request, scheduler

LARGE, SMALL = 16_000, 300  # small ones tell too little of the machine to be learned from
SLOW = 4.0


class Odd:
    """One replica that is slow with large prompts only: a factor is learned from them, and is wrong for all the others."""

    def __init__(self, without: tuple[str, ...] = (), large_every: int = 8) -> None:
        self.scheduler = scheduler(profile(max_model_len=32_768, kv_blocks=10_000), scheduling={"without": without})
        self.now = 0.0
        self.small_factor = 1.0
        self.weights: set[float] = set()  # after each answer
        self._large_every = large_every
        self._prior_s = {tokens: self._predicted_s(tokens) for tokens in (SMALL, LARGE)}

    def serve(self, count: int) -> None:
        for number in range(count):
            if number % self._large_every:
                self._serve(SMALL, self._prior_s[SMALL] * self.small_factor)
            else:
                self._serve(LARGE, self._prior_s[LARGE] * SLOW)
            self.weights.add(self.weight)

    def predicted_ratio(self) -> float:
        """Of what would be said without learning."""
        return self._predicted_s(SMALL) / self._prior_s[SMALL]

    @property
    def weight(self) -> float:
        return self.scheduler.states(self.now)[0].audit[Signal.TTFT].weight

    def _place(self, tokens: int):
        self.now += 100.0
        self.scheduler.submit(request(prompt_tokens=tokens, arrived_s=self.now), self.now)
        return self.scheduler.advance(self.now)[0]

    def _predicted_s(self, tokens: int) -> float:
        placed = self._place(tokens)
        self.scheduler.finish(placed.lease.id, self.now, outcome=Outcome.CANCELLED)
        return placed.placement.score.ttft_s

    def _serve(self, tokens: int, first_s: float) -> None:
        lease = self._place(tokens).lease
        self.scheduler.on_first_token(lease.id, self.now + first_s)
        self.scheduler.on_tokens(lease.id, 1, self.now + first_s)
        self.scheduler.finish(lease.id, self.now + first_s, outcome=Outcome.COMPLETED, output_tokens=1)


def test_a_factor_that_misleads_is_not_gone_by():
    """The replica offers what its GPU type says; with the audit switched off it goes on by the factor that is wrong."""
    odd, trusting = Odd(), Odd(without=("audit",))
    odd.serve(160)
    trusting.serve(160)
    assert odd.weight == 0.0
    assert odd.predicted_ratio() == pytest.approx(1.0)
    assert trusting.weight == 1.0
    assert trusting.predicted_ratio() > 2.0


def test_what_is_judged_is_the_factor_and_not_the_blend():
    """A factor without weight is still told from none: the same requests for as long as one likes leave it at nothing."""
    odd = Odd()
    odd.serve(160)
    odd.weights.clear()
    odd.serve(800)
    assert odd.weights == {0.0}
    errors = odd.scheduler.states(odd.now)[0].audit[Signal.TTFT]
    assert errors.learned > 2 * errors.baseline
    # Nor is the blend what it learns from: it would go on correcting for what is not its own.
    assert odd.scheduler.states(odd.now)[0].extras["ttft_factor"] == pytest.approx(SLOW, rel=0.1)


def test_a_factor_that_became_right_is_gone_by_again():
    """It was learned on while nobody believed it; when small prompts are slow, too, its weight comes back."""
    odd = Odd()
    odd.serve(160)
    odd.small_factor = SLOW
    odd.serve(160)
    assert odd.weight == 1.0
    assert odd.predicted_ratio() == pytest.approx(SLOW, rel=0.1)


def test_prefix_belief_that_is_never_right_is_given_up():
    """Half of what is believed to be cached is there for one answer in eight: to reckon with nothing is closer, and is done."""
    built = scheduler(profile(kv_blocks=10_000, max_num_seqs=64))
    chunks = {"prompt_tokens": 1100, "prefix_hashes": tuple(range(16)), "prefix_chunk_tokens": 64}
    cached: list[int] = []
    for number in range(200):
        now = number * 10.0
        built.submit(request(str(number), arrived_s=now, **chunks), now)
        placed = built.advance(now)[0]
        cached.append(placed.placement.score.cached_tokens)
        reported = 1024 if number % 8 == 0 else 0
        built.on_first_token(placed.lease.id, now + 1)
        built.finish(placed.lease.id, now + 2, outcome=Outcome.COMPLETED, cached_tokens=reported, output_tokens=5)
    assert max(cached[:20]) > 0
    assert cached[-20:] == [0] * 20
    assert built.states(0.0)[0].extras["prefix_trust_ratio"] > 0.05  # learned all the same, for when it is right


def test_the_audit_needs_no_decision_ledger():
    """Errors and weights are the scheduler's own."""
    with_ledger = Kept(profile())
    without = Scheduler(Scheduling(), Queue())
    for built in (with_ledger.scheduler, without):
        if built is without:
            built.add_replica(profile(), with_ledger.scheduler.states(0.0)[0].lifecycle, 0.0)
        built.submit(request("r"), 0.0)
        (lease,) = leases(built.advance(0.0))
        built.on_first_token(lease.id, 0.5)
        built.on_tokens(lease.id, 41, 2.5)
        built.finish(lease.id, 2.5, outcome=Outcome.COMPLETED, cached_tokens=16, output_tokens=41)
    assert without.states(3.0)[0].audit == with_ledger.scheduler.states(3.0)[0].audit
    assert set(without.states(3.0)[0].audit) == set(Signal) - {Signal.KV_USAGE, Signal.KV_FORECAST}


def test_a_replica_that_comes_anew_has_no_past():
    """Removed and added under the same name, it is another machine."""
    built = scheduler(profile("a"))
    built.submit(request("r"), 0.0)
    (lease,) = leases(built.advance(0.0))
    built.finish(lease.id, 2.5, outcome=Outcome.COMPLETED, output_tokens=41)
    state = built.states(3.0)[0]
    assert state.audit
    built.remove_replica(ReplicaId("a"), 3.0)
    built.add_replica(profile("a"), state.lifecycle, 3.0)
    assert not built.states(3.0)[0].audit
