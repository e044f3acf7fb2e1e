"""Tenants by tokens served: one greedy and nine light ones, against the bound of the paper.

Source: Sheng, Cao, Li, Zhu, Li, Zhuo, Gonzalez, Stoica: "Fairness in Serving Large Language Models", OSDI 2024, theorem 4.4: while
two clients are both continuously backlogged, the service that a virtual token counter gives them differs by at most 2 U with
U = max(w_p L_input, w_q M), where w_p and w_q weigh prompt and output tokens, L_input is the longest prompt and M the most
tokens that fit in the running batch - here the output tokens that all slots together can hold.
"""

from random import Random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from batching.queue import OUTPUT_TOKEN_WEIGHT
from batching.request import Outcome
from tests.support.scheduling import leases, profile, request, scheduler

SLOTS, LONGEST_PROMPT, LONGEST_OUTPUT = 4, 500, 120
BOUND = 2 * max(LONGEST_PROMPT, OUTPUT_TOKEN_WEIGHT * SLOTS * LONGEST_OUTPUT)
GREEDY, LIGHT = "greedy", tuple(f"light{number}" for number in range(9))


class Shop:
    """One replica whose tenants always have something waiting; each step every sequence gets a token."""

    def __init__(self, seed: int, standing: dict[str, int]) -> None:
        self.dice = Random(seed)
        self.built = scheduler(
            profile(max_num_seqs=SLOTS),
            scheduling={"objectives": {"ttft_s": 1e6}},
            queue={"max_wait_s": 1e6, "aging_s": 1e6},
        )
        self.standing = standing
        self.waiting = dict.fromkeys(standing, 0)
        self.served = dict.fromkeys(standing, 0.0)
        self.running: dict[Any, Any] = {}
        self.now = 0.0

    def step(self):
        self.now += 0.01
        for tenant, wanted in self.standing.items():
            for _ in range(wanted - self.waiting[tenant]):
                prompt = LONGEST_PROMPT if tenant == GREEDY else self.dice.randint(1, LONGEST_PROMPT)
                self.built.submit(request(tenant=tenant, prompt_tokens=prompt, arrived_s=self.now), self.now)
            self.waiting[tenant] = wanted
        for lease in leases(self.built.advance(self.now)):
            tenant = lease.request.tenant
            self.waiting[tenant] -= 1
            self.served[tenant] += lease.request.prompt_tokens
            self.built.on_first_token(lease.id, self.now)
            self.running[lease.id] = [lease, 0, LONGEST_OUTPUT if tenant == GREEDY else self.dice.randint(1, 60)]
        for lease_id, entry in list(self.running.items()):
            lease, emitted, wanted = entry
            entry[1] = emitted + 1
            self.served[lease.request.tenant] += OUTPUT_TOKEN_WEIGHT
            self.built.on_tokens(lease_id, emitted + 1, self.now)
            if emitted + 1 >= wanted:
                del self.running[lease_id]
                self.built.finish(lease_id, self.now, outcome=Outcome.COMPLETED, output_tokens=wanted)


@given(st.integers(0, 2**16))
@settings(max_examples=5, deadline=None)
def test_service_of_backlogged_tenants_stays_within_the_bound(seed: int):
    """Ten tenants that always wait, one with a hundred long requests at a time: at no moment do two differ by more than 2 U."""
    shop = Shop(seed, {GREEDY: 100, **dict.fromkeys(LIGHT, 2)})
    for _ in range(1500):
        shop.step()
        assert max(shop.served.values()) - min(shop.served.values()) <= BOUND
    assert min(shop.served.values()) > 2 * BOUND  # long enough to tell


def test_who_comes_back_is_owed_nothing():
    """From when a tenant waits again, its service and that of one who never stopped differ by the bound at most."""
    shop = Shop(7, {GREEDY: 20})
    for _ in range(1500):
        shop.step()
    shop.standing[LIGHT[0]], shop.waiting[LIGHT[0]], shop.served[LIGHT[0]] = 2, 0, 0.0
    before = shop.served[GREEDY]
    for _ in range(1500):
        shop.step()
        assert abs(shop.served[LIGHT[0]] - (shop.served[GREEDY] - before)) <= BOUND
    assert shop.served[LIGHT[0]] > 2 * BOUND
