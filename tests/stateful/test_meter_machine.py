"""Money against any interleaving of requests, prices, lifecycles, shares and clocks: what was charged and idle is price x time."""

import math
from dataclasses import replace

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from batching.bill import Account, Bill
from batching.meter import WHOLE_PRICE
from batching.replica import TRANSITIONS, Lifecycle
from batching.request import Outcome, ReplicaId, Request
from batching.ticket import Lease
from config.schema import CostTier
from tests.support.scheduling import leases, profile, request, scheduler

NAMES = ("a", "b")
ACCOUNTS = (Account("m", "default", "x"), Account("m", "flex", "x"), Account("m", "default", "y"))


class MoneyMachine(RuleBasedStateMachine):
    """A scheduler, and beside it the plainest model of money there is: seconds times price, replica by replica."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.profiles = {ReplicaId(name): profile(name) for name in NAMES}
        self.scheduler = scheduler(*self.profiles.values(), scheduling={"without": ["itl_guard"]})
        self.lifecycles = dict.fromkeys(self.profiles, Lifecycle.READY)
        self.parts = dict.fromkeys(self.profiles, WHOLE_PRICE)
        self.running: dict[Lease, Request] = {}
        self.calls: list[Request] = []
        self.due = {"busy": 0.0, "idle": 0.0}
        self.taken = {"busy": 0.0, "idle": 0.0}
        self.by_account = dict.fromkeys(ACCOUNTS, 0.0)

    def _pass(self, seconds: float) -> None:
        """Of the model; a clock that goes back makes no money."""
        for name, known in self.profiles.items():
            usd = seconds * known.usd_per_hour / 3600 * self.parts[name] / WHOLE_PRICE
            if any(lease.replica == name for lease in self.running):
                self.due["busy"] += usd
            elif known.cost_tier is CostTier.RESERVED or self.lifecycles[name] is not Lifecycle.DOWN:
                self.due["idle"] += usd

    @rule(seconds=st.floats(0, 1000))
    def wait(self, seconds: float):
        self._pass(seconds)
        self.now += seconds

    @rule(account=st.sampled_from(ACCOUNTS), prompt=st.integers(1, 4000), sequences=st.integers(1, 3))
    def arrive(self, account: Account, prompt: int, sequences: int):
        call = request(f"r{len(self.calls)}", bill=Bill(account), prompt_tokens=prompt, sequences=sequences)
        self.calls.append(call)
        self._submit(call)

    def _submit(self, call: Request) -> None:
        try:
            ticket = self.scheduler.submit(replace(call, arrived_s=self.now), self.now)
        except Exception:  # noqa: BLE001 - nobody is there to take it: it costs nothing
            return
        for lease in leases(self.scheduler.advance(self.now)):
            self.running[_known(lease)] = call
        self.scheduler.cancel(ticket, self.now)

    @rule(data=st.data())
    def begin(self, data: st.DataObject):
        if self.running:
            self.scheduler.on_first_token(self._one(data).id, self.now)

    @rule(data=st.data(), tokens=st.integers(1, 500), ago_s=st.floats(0, 50))
    def grow(self, data: st.DataObject, tokens: int, ago_s: float):
        """Also by a report whose clock is behind."""
        if self.running:
            self.scheduler.on_tokens(self._one(data).id, tokens, self.now - ago_s)

    @rule(data=st.data(), outcome=st.sampled_from(list(Outcome)))
    def end(self, data: st.DataObject, outcome: Outcome):
        if self.running:
            lease = self._one(data)
            del self.running[lease]
            assert self.scheduler.finish(lease.id, self.now, outcome=outcome)

    @rule(data=st.data())
    def move(self, data: st.DataObject):
        """Given back and placed again, on the same bill."""
        if self.running:
            lease = self._one(data)
            call = self.running.pop(lease)
            self.scheduler.finish(lease.id, self.now, outcome=Outcome.FAILED)
            self._submit(replace(call, resumes=True, avoid=frozenset({lease.replica})))

    @rule(name=st.sampled_from(NAMES), usd=st.floats(0, 100), tier=st.sampled_from(list(CostTier)))
    def reprice(self, name: str, usd: float, tier: CostTier):
        changed = replace(self.profiles[ReplicaId(name)], usd_per_hour=usd, cost_tier=tier)
        self.profiles[changed.id] = changed
        self.scheduler.update_profile(changed, self.now)

    @rule(name=st.sampled_from(NAMES), data=st.data())
    def live(self, name: str, data: st.DataObject):
        replica = ReplicaId(name)
        target = data.draw(st.sampled_from(sorted(TRANSITIONS[self.lifecycles[replica]])))
        self.lifecycles[replica] = target
        self.scheduler.set_lifecycle(replica, target, self.now)

    @rule(name=st.sampled_from(NAMES), parts=st.integers(0, WHOLE_PRICE))
    def pay(self, name: str, parts: int):
        self.parts[ReplicaId(name)] = parts
        self.scheduler.stake.pay(ReplicaId(name), parts, self.now)

    @rule()
    def take(self):
        for row in self.scheduler.till.take(self.now):
            self.taken["busy"] += row.busy_usd
            self.taken["idle"] += row.idle_usd
            assert math.isclose(row.busy_usd, sum(row.accounts.values()), rel_tol=1e-9, abs_tol=1e-12)
            for account, usd in row.accounts.items():
                assert usd >= 0
                self.by_account[account] += usd

    @invariant()
    def no_bill_is_negative(self):
        assert all(call.bill is not None and call.bill.usd >= 0 for call in self.calls)

    def teardown(self) -> None:
        for lease in self.running:
            self.scheduler.finish(lease.id, self.now, outcome=Outcome.CANCELLED)
        self.running.clear()
        self.take()
        for state, usd in self.due.items():
            assert math.isclose(self.taken[state], usd, rel_tol=1e-9, abs_tol=1e-12), state
        bills = [call.bill for call in self.calls if call.bill is not None]
        for account, usd in self.by_account.items():
            billed = sum(bill.usd for bill in bills if bill.account == account)
            assert math.isclose(billed, usd, rel_tol=1e-9, abs_tol=1e-12)
        for bill in bills:
            assert math.isclose(bill.usd, sum(bill.parts.values()), rel_tol=1e-9, abs_tol=1e-12)

    def _one(self, data: st.DataObject) -> Lease:
        return data.draw(st.sampled_from(sorted(self.running, key=lambda lease: lease.id)))


class _Known(Lease):
    """A lease that can be a key."""

    __hash__ = object.__hash__


def _known(lease: Lease) -> Lease:
    return _Known(lease.id, lease.replica, lease.request)


def test_charged_and_idle_is_price_times_time():
    """Whatever happens, no second of a machine is charged twice, or to nobody."""
    run_state_machine_as_test(
        MoneyMachine,
        settings=settings(
            max_examples=80, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
