"""What holds of every baseline: it answers with a candidate or holds, repeats itself, forgets what ended, stays bounded."""

from random import Random

import pytest

from batching.policies import BASELINES
from batching.policies.base import Counting
from batching.policies.policy import Candidate, Policy
from batching.request import ReplicaId, Request
from config.schema import CostTier
from tests.support.scheduling import request
from tests.unit.batching.policies.candidates import candidate, load

SCRAPES = {
    "round_robin": None,
    "least_requests": None,
    "power_of_two": 10.0,
    "least_load": 10.0,
    "cache_aware": None,
    "llm_d": 0.05,
    "llm_d_sticky": 0.05,
    "dynamo": None,
    "slo_pack_load": None,
    "prefix_aware": None,
    "spot_first": None,
}
TIERS = list(CostTier)

every_baseline = pytest.mark.parametrize("name", BASELINES)


class Driver:
    """Random traffic over seven replicas that come and go; what was done is kept in `log`."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.random = Random(7)
        self.open: list[tuple[Request, ReplicaId, bool]] = []
        self.log: list[ReplicaId | None] = []

    def run(self, steps: int, *, lives: int = 1) -> None:
        for step in range(steps):
            now = step * 0.04
            self._ask(step, now, lives)
            while len(self.open) > 40 or (self.open and self.random.random() < 0.45):
                self._progress(now)
            if self.random.random() < 0.02:
                self.policy.forget(self._replica(self.random.randrange(7), step, lives))

    def end(self) -> None:
        for sent, replica, _ in self.open:
            self.policy.finished(sent, replica, 1e6)
        self.open.clear()

    def _replica(self, place: int, step: int, lives: int) -> ReplicaId:
        return ReplicaId(f"{place}-{step * lives // 2000}")

    def _pool(self, step: int, now: float, lives: int) -> list[Candidate]:
        names = [self._replica(place, step, lives) for place in self.random.sample(range(7), self.random.randint(1, 7))]
        return [
            candidate(
                name,
                load(waiting=self.random.randrange(6), kv=self.random.random(), at=now)
                if self.random.random() < 0.9
                else None,
                gpu=("H100-80G", "A100-80G", "unknown")[int(name[0]) % 3],
                cost_tier=TIERS[int(name[0]) % 3],
            )
            for name in names
        ]

    def _ask(self, step: int, now: float, lives: int) -> None:
        root, length = self.random.randrange(12), self.random.randint(0, 6)
        sent = request(
            str(step),
            prompt_tokens=64 * length + self.random.randint(1, 63),
            prefix_hashes=tuple(root * 100 + depth for depth in range(length)),
            prefix_chunk_tokens=64,
            streaming=self.random.random() < 0.8,
        )
        pool = self._pool(step, now, lives)
        chosen = self.policy.choose(sent, pool, now)
        assert chosen is None or chosen in {c.id for c in pool}
        self.log.append(chosen)
        if chosen is not None:
            self.policy.placed(sent, chosen, now)
            self.open.append((sent, chosen, False))

    def _progress(self, now: float) -> None:
        sent, replica, begun = self.open.pop(self.random.randrange(len(self.open)))
        if not begun and sent.streaming and self.random.random() < 0.8:
            self.policy.first_token(sent, replica, now)
            self.open.append((sent, replica, True))
            return
        if self.random.random() < 0.9:
            self.policy.answered(sent, self.random.randint(1, 500), now)
        self.policy.finished(sent, replica, now)


def test_every_name_has_its_original_staleness():
    """A policy that scrapes every 10 s in life sees 10 s old numbers here."""
    assert {name: build(0).scrape_interval_s for name, build in BASELINES.items()} == SCRAPES


@every_baseline
def test_chooses_a_candidate_or_holds_and_repeats_itself(name: str):
    """The same seed and the same events give the same answers; in between it places most of them."""
    logs = []
    for _ in range(2):
        driver = Driver(BASELINES[name](3))
        driver.run(2000)
        logs.append(driver.log)
    assert logs[0] == logs[1]
    assert sum(chosen is not None for chosen in logs[0]) > 500


@every_baseline
def test_seeds_are_no_global_state(name: str):
    """Two of one seed, asked in turn, do not disturb each other."""
    first, second = (Driver(BASELINES[name](5)) for _ in range(2))
    for _ in range(3):
        first.run(100)
        second.run(100)
    assert first.log == second.log


@every_baseline
def test_counters_return_to_zero(name: str):
    """Whatever was placed has ended: nothing is in flight, prefilling or consumed."""
    policy = BASELINES[name](1)
    assert isinstance(policy, Counting)
    driver = Driver(policy)
    driver.run(2000)
    assert sum(policy.in_flight.values()) == len(driver.open)
    driver.end()
    assert not policy.in_flight
    for counter in ("_prefilling", "_tokens", "_sequences", "_consumed", "_utilization"):
        assert not getattr(policy, counter, None), counter


@every_baseline
def test_nothing_grows_with_the_lives_of_replicas(name: str):
    """700 replicas that came and were forgotten leave no more behind than seven."""
    sizes = []
    for lives in (1, 100):
        driver = Driver(BASELINES[name](1))
        driver.run(2000, lives=lives)
        driver.end()
        for place in range(7):
            for life in range(lives + 1):
                driver.policy.forget(ReplicaId(f"{place}-{life}"))
        kept = {key: value for key, value in vars(driver.policy).items() if hasattr(value, "__len__")}
        sizes.append({key: len(value) for key, value in kept.items() if not isinstance(value, str | tuple)})
    few, many = sizes
    assert few.keys() == many.keys()
    assert {key: size for key, size in many.items() if size > few[key] + 10} == {}
