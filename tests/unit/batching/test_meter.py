"""Who pays for a machine's second: each request by its part of a step, nobody for idle ones, and every dollar once."""

from dataclasses import replace
from typing import Any

import pytest

from batching.bill import Account, Bill, Machine
from batching.meter import WHOLE_PRICE, Spent
from batching.replica import Lifecycle, ReplicaProfile
from batching.request import Outcome, ReplicaId, Request
from batching.scheduler import Scheduler
from batching.ticket import Lease
from config.schema import CostTier
from tests.support.scheduling import leases, profile, request
from tests.support.scheduling import scheduler as scheduler_of

A = ReplicaId("a")
PER_S = 3.6 / 3600  # of `profile`'s replica: a tenth of a cent a second
ALICE, BOB = Account("m", "default", "alice"), Account("m", "priority", "bob")
MACHINE = Machine(A, "H100-80G", CostTier.ON_DEMAND)


def scheduler(*replicas: ReplicaProfile) -> Scheduler:
    """One that places whatever fits: these streams get no tokens, and are no reason to wait."""
    return scheduler_of(*replicas, scheduling={"without": ["itl_guard"]})


def billed(name: str, account: Account = ALICE, **changes: Any) -> Request:
    return request(name, bill=Bill(account), **changes)


def usd(call: Request) -> float:
    assert call.bill is not None
    return call.bill.usd


def start(built: Scheduler, call: Request, now: float) -> Lease:
    """Placed and prefilled."""
    built.submit(call, now)
    [lease] = leases(built.advance(now))
    built.on_first_token(lease.id, now)
    return lease


def finish(built: Scheduler, lease: Lease, now: float, outcome: Outcome = Outcome.COMPLETED) -> None:
    assert built.finish(lease.id, now, outcome=outcome)


def only(spent: list[Spent]) -> Spent:
    [row] = spent
    return row


def test_alone_a_request_pays_every_second():
    """Of the whole machine, from its placement to its end."""
    built, call = scheduler(profile()), billed("r")
    lease = start(built, call, 10.0)
    finish(built, lease, 14.0)
    assert usd(call) == pytest.approx(4 * PER_S)
    row = only(built.till.take(20.0))
    assert (row.machine, row.accounts) == (MACHINE, {ALICE: pytest.approx(4 * PER_S)})
    assert (row.busy_usd, row.idle_usd) == (pytest.approx(4 * PER_S), pytest.approx(16 * PER_S))


def test_two_of_a_kind_pay_half_each_while_both_run():
    """Requests alike share each second alike; who is alone again pays all of it."""
    built, first, second = scheduler(profile()), billed("r1"), billed("r2", BOB)
    one = start(built, first, 0.0)
    two = start(built, second, 2.0)
    finish(built, one, 6.0)
    finish(built, two, 7.0)
    assert usd(first) == pytest.approx((2 + 2) * PER_S)
    assert usd(second) == pytest.approx((2 + 1) * PER_S)
    row = only(built.till.take(7.0))
    assert row.accounts == {ALICE: pytest.approx(usd(first)), BOB: pytest.approx(usd(second))}
    assert row.idle_usd == 0


def test_who_is_prefilled_pays_for_the_step_that_it_fills():
    """A prompt of a whole chunk makes a step of an H100 several times as long as eight streams' decoding: it pays for nearly all of it."""
    built = scheduler(profile())
    stream, prompt = billed("stream"), billed("prompt", BOB, prompt_tokens=2000)
    one = start(built, stream, 0.0)
    before = usd(stream)
    built.submit(prompt, 1.0)
    [two] = leases(built.advance(1.0))
    built.on_first_token(two.id, 2.0)
    share = (usd(prompt) - 0.0) / PER_S
    assert 0.9 < share < 1
    finish(built, one, 3.0)
    finish(built, two, 3.0)
    assert usd(stream) - before + usd(prompt) == pytest.approx(3 * PER_S)


def test_a_longer_context_pays_more_but_not_in_proportion():
    """A step reads the weights for all alike, and the KV cache of each by its length."""
    built, short, long = scheduler(profile()), billed("short", prompt_tokens=100), billed("long", prompt_tokens=8000)
    one, two = start(built, short, 0.0), start(built, long, 0.0)
    finish(built, one, 1.0)
    finish(built, two, 1.0)
    assert 1.2 < usd(long) / usd(short) < 2


def test_choices_pay_one_by_one():
    """Each choice of an answer is a sequence of the batch."""
    built, single, double = scheduler(profile()), billed("one"), billed("two", sequences=2)
    one, two = start(built, single, 0.0), start(built, double, 0.0)
    finish(built, one, 1.0)
    finish(built, two, 1.0)
    assert 1.8 < usd(double) / usd(single) < 2


def test_a_growing_answer_pays_for_what_it_holds():
    """Block by block; the others' part becomes less."""
    built, grows, stays = scheduler(profile()), billed("grows", max_output_tokens=8000), billed("stays")
    one, two = start(built, grows, 0.0), start(built, stays, 0.0)
    built.on_tokens(one.id, 7000, 1.0)
    finish(built, one, 2.0)
    finish(built, two, 2.0)
    assert usd(grows) / usd(stays) > 1.1
    assert usd(grows) + usd(stays) == pytest.approx(2 * PER_S)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_whatever_becomes_of_it_it_pays(outcome: Outcome):
    """A cancelled or failed attempt has used the machine as well."""
    built, call = scheduler(profile()), billed("r")
    finish(built, start(built, call, 0.0), 2.0, outcome)
    assert usd(call) == pytest.approx(2 * PER_S)


def test_a_lease_given_back_twice_pays_once():
    """The second time changes nothing."""
    built, call = scheduler(profile()), billed("r")
    lease = start(built, call, 0.0)
    finish(built, lease, 1.0)
    assert not built.finish(lease.id, 5.0, outcome=Outcome.CANCELLED)
    assert usd(call) == pytest.approx(PER_S)
    assert only(built.till.take(5.0)).busy_usd == pytest.approx(PER_S)


def test_a_clock_that_goes_back_charges_nothing_twice():
    """Time that was paid for is not paid for again."""
    built, call = scheduler(profile()), billed("r")
    lease = start(built, call, 10.0)
    first = only(built.till.take(12.0))
    assert only(built.till.take(5.0)).busy_usd == 0
    built.on_tokens(lease.id, 30, 6.0)
    finish(built, lease, 13.0)
    second = only(built.till.take(13.0))
    assert first.busy_usd + second.busy_usd == pytest.approx(3 * PER_S)
    assert usd(call) == pytest.approx(3 * PER_S)


def test_a_new_price_counts_from_its_moment():
    """For what runs, too; and what it costs before and after is told apart."""
    built, call = scheduler(profile()), billed("r")
    lease = start(built, call, 0.0)
    built.update_profile(profile(usd_per_hour=7.2), 3.0)
    finish(built, lease, 5.0)
    assert usd(call) == pytest.approx((3 + 2 * 2) * PER_S)
    assert only(built.till.take(5.0)).busy_usd == pytest.approx(7 * PER_S)


def test_a_new_tier_is_a_new_machine():
    """What ran until then is billed under the tier it had."""
    built, call = scheduler(profile()), billed("r")
    lease = start(built, call, 0.0)
    built.update_profile(profile(cost_tier=CostTier.SPOT, usd_per_hour=1.8), 2.0)
    finish(built, lease, 4.0)
    before, after = built.till.take(4.0)
    spot = MACHINE._replace(cost_tier=CostTier.SPOT)
    assert (before.machine, before.busy_usd) == (MACHINE, pytest.approx(2 * PER_S))
    assert (after.machine, after.busy_usd) == (spot, pytest.approx(PER_S))
    assert call.bill is not None
    assert call.bill.parts == {MACHINE: pytest.approx(2 * PER_S), spot: pytest.approx(PER_S)}


def test_a_stream_is_charged_while_it_runs():
    """What is taken in between and at the end sums to its bill."""
    built, call = scheduler(profile()), billed("r")
    lease = start(built, call, 0.0)
    taken = [only(built.till.take(now)).accounts[ALICE] for now in (1.0, 2.5, 4.0)]
    assert taken == pytest.approx([PER_S, 1.5 * PER_S, 1.5 * PER_S])
    finish(built, lease, 5.0)
    assert sum(taken) + only(built.till.take(9.0)).accounts[ALICE] == pytest.approx(usd(call))
    assert only(built.till.take(9.0)).accounts == {}


def test_a_machine_that_is_down_costs_nothing_unless_it_is_reserved():
    """A stopped machine is not billed; a reservation is."""
    built = scheduler(profile("a"), profile("r", cost_tier=CostTier.RESERVED))
    for name in ("a", "r"):
        built.set_lifecycle(ReplicaId(name), Lifecycle.DOWN, 2.0)
    idle = {row.machine.replica: row.idle_usd for row in built.till.take(10.0)}
    assert idle == {"a": pytest.approx(2 * PER_S), "r": pytest.approx(10 * PER_S)}
    built.set_lifecycle(A, Lifecycle.STARTING, 10.0)  # it is there again
    assert built.till.take(11.0)[0].idle_usd == pytest.approx(PER_S)


def test_a_machine_costs_from_when_it_is_first_seen():
    """What has never answered may not exist; a reservation does."""
    built = scheduler()
    built.add_replica(profile("a"), Lifecycle.STARTING, 0.0)
    built.add_replica(profile("r", cost_tier=CostTier.RESERVED), Lifecycle.STARTING, 0.0)
    assert [row.idle_usd for row in built.till.take(5.0)] == [0.0, pytest.approx(5 * PER_S)]
    built.set_lifecycle(A, Lifecycle.READY, 6.0)
    assert built.till.take(7.0)[0].idle_usd == pytest.approx(PER_S)


def test_a_replica_that_left_the_fleet_costs_what_still_runs_there():
    """Its last dollars are told, then it is forgotten."""
    built, call = scheduler(profile()), billed("r")
    lease = start(built, call, 0.0)
    built.remove_replica(A, 1.0)
    finish(built, lease, 4.0)
    row = only(built.till.take(9.0))
    assert (row.busy_usd, row.idle_usd) == (pytest.approx(4 * PER_S), 0.0)
    assert built.till.take(10.0) == []


def test_a_replica_that_comes_back_while_its_last_answer_runs_is_charged_once():
    """One meter, at the new price from its return on."""
    built, call = scheduler(profile()), billed("r")
    lease = start(built, call, 0.0)
    built.remove_replica(A, 1.0)
    built.add_replica(profile(usd_per_hour=7.2), Lifecycle.READY, 2.0)
    finish(built, lease, 3.0)
    row = only(built.till.take(4.0))
    assert row.busy_usd == pytest.approx((2 + 2) * PER_S)
    assert row.idle_usd == pytest.approx(2 * PER_S)
    assert usd(call) == pytest.approx(row.busy_usd)


def test_a_part_of_the_price_is_split_in_the_same_way():
    """One gateway of several: so much is its own, whether something runs there or not."""
    built, call = scheduler(profile()), billed("r")
    built.stake.pay(A, WHOLE_PRICE // 4, 2.0)
    lease = start(built, call, 4.0)
    built.stake.pay(A, WHOLE_PRICE, 6.0)
    finish(built, lease, 8.0)
    row = only(built.till.take(8.0))
    assert row.idle_usd == pytest.approx((2 + 2 / 4) * PER_S)
    assert row.busy_usd == usd(call) == pytest.approx((2 / 4 + 2) * PER_S)


def test_what_moves_is_billed_at_each_of_its_machines():
    """One bill, by machine; so are repeated and hedged attempts: all that worked for a call is the call's."""
    built = scheduler(profile("a"), profile("b", usd_per_hour=7.2))
    call = billed("r")
    finish(built, start(built, call, 0.0), 2.0, Outcome.FAILED)
    lease = start(built, replace(call, avoid=frozenset({A}), resumes=True), 3.0)
    assert lease.replica == "b"
    finish(built, lease, 4.0)
    assert call.bill is not None
    parts = {machine.replica: part for machine, part in call.bill.parts.items()}
    assert parts == {"a": pytest.approx(2 * PER_S), "b": pytest.approx(2 * PER_S)}
    assert usd(call) == pytest.approx(4 * PER_S)


def test_years_lose_no_digits():
    """The integral begins anew whenever a replica is empty, so a long-lived gateway bills as a young one does."""
    built = scheduler(profile())
    start(built, billed("old"), 0.0)
    built.till.take(3e8)
    call = billed("new")
    finish(built, start(built, call, 3e8), 3e8 + 10.0)
    assert usd(call) == pytest.approx(5 * PER_S, rel=1e-6)
