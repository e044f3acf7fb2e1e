"""What tenants were served, between processes that come and die, over a network that loses, repeats and delays: each token counts once."""

from collections import Counter, defaultdict
from collections.abc import Mapping

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from batching.service import Service

WATCHED = ("m", 0)
TENANTS = "xyz"
STEP_S = 0.25  # all of a machine's steps together are less than the silence of which only a part is settled


class Site:
    """One process: its own service, and that of others as it was told to count it."""

    def __init__(self, instance: str, now: float) -> None:
        self.instance, self.began_s = instance, now
        self.fresh: Counter[str] = Counter()
        self.given: Counter[str] = Counter()
        self.taken: Counter[str] = Counter()
        self.service = Service(self)
        self.service.tell(instance, now)

    def collect_service(self) -> dict[tuple[str, int], dict[str, float]]:
        fresh, self.fresh = self.fresh, Counter()
        return {WATCHED: {tenant: float(tokens) for tenant, tokens in fresh.items()}} if fresh else {}

    def serve_elsewhere(self, service: Mapping[tuple[str, int], Mapping[str, float]]) -> None:
        for tenant, tokens in service[WATCHED].items():
            assert tokens > 0
            self.taken[tenant] += int(tokens)

    def serve(self, tenant: str, tokens: int) -> None:
        self.fresh[tenant] += tokens
        self.given[tenant] += tokens


class ServiceMachine(RuleBasedStateMachine):
    """Of each teller a hearer has counted what the furthest message says that reached it; of one that is older, since the first."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.born = 0
        self.sites: list[Site] = []
        self.sent: list[tuple[Site, bytes, Counter[str]]] = []  # every message ever, with what had been given by then
        self.expected: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)  # by hearer and teller
        self.met: set[tuple[str, str]] = set()
        self.first: dict[tuple[str, str], Counter[str]] = {}

    @initialize(sites=st.integers(2, 3))
    def begin(self, sites: int):
        for _ in range(sites):
            self.join()

    @rule()
    def join(self):
        if len(self.sites) < 3:
            self.born += 1
            self.now += STEP_S
            self.sites.append(Site(f"i{self.born}", self.now))

    @rule(data=st.data())
    def die(self, data: st.DataObject):
        """Without a word; what it sent may still arrive."""
        if len(self.sites) > 1:
            self.sites.remove(self._one(data))

    @rule(data=st.data(), tenant=st.sampled_from(TENANTS), tokens=st.integers(1, 1000))
    def serve(self, data: st.DataObject, tenant: str, tokens: int):
        self._one(data).serve(tenant, tokens)

    @rule(data=st.data())
    def tell(self, data: st.DataObject):
        self._tell(self._one(data))

    @rule(data=st.data(), tenant=st.sampled_from(TENANTS), tokens=st.integers(1, 1000))
    def talk(self, data: st.DataObject, tenant: str, tokens: int):
        """As it nearly always goes: one serves and tells, another hears."""
        teller = self._one(data)
        teller.serve(tenant, tokens)
        self._deliver(self._one(data), self._tell(teller), 1)

    @rule(data=st.data(), times=st.sampled_from((1, 1, 1, 2)))
    def hear(self, data: st.DataObject, times: int):
        """Any message, be it old; or twice the same."""
        if self.sent:
            self._deliver(self._one(data), data.draw(st.sampled_from(self.sent)), times)

    @rule(data=st.data())
    def hear_all(self, data: st.DataObject):
        """The last of each, as a report to Redis brings them."""
        hearer = self._one(data)
        for message in {site.instance: (site, words, given) for site, words, given in self.sent}.values():
            self._deliver(hearer, message, 1)

    @invariant()
    def each_token_counts_once(self):
        for hearer in self.sites:
            total: Counter[str] = Counter()
            for (name, _), counted in self.expected.items():
                if name == hearer.instance:
                    total += counted
            assert +hearer.taken == +total, hearer.instance

    def _deliver(self, hearer: Site, message: tuple[Site, bytes, Counter[str]], times: int) -> None:
        teller, words, given = message
        pair = hearer.instance, teller.instance
        if teller is hearer:
            return
        if pair not in self.met:  # what is heard first is of the moment, as both transports have it
            if teller not in self.sites:
                return
            _, words, given = self._tell(teller)
            self.met.add(pair)
        for _ in range(times):
            hearer.service.hear([words], self.now)
        if teller.began_s < hearer.began_s:  # what it had given before counts for nothing here
            first = self.first.setdefault(pair, given)
            given = Counter({tenant: tokens - first[tenant] for tenant, tokens in given.items()})
        self.expected[pair] |= +given

    def _tell(self, site: Site) -> tuple[Site, bytes, Counter[str]]:
        self.now += STEP_S
        self.sent.append((site, site.service.tell(site.instance, self.now), Counter(site.given)))
        return self.sent[-1]

    def _one(self, data: st.DataObject) -> Site:
        return data.draw(st.sampled_from(self.sites))


def test_each_token_counts_once():
    """Whatever is lost, late or said again, and whoever begins or ends."""
    run_state_machine_as_test(
        ServiceMachine,
        settings=settings(
            max_examples=100, stateful_step_count=24, deadline=None, suppress_health_check=[HealthCheck.too_slow]
        ),
    )
