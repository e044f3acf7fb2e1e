"""Each mechanism can be switched off, and what it is named for is gone."""

from collections.abc import Callable
from typing import Any

import pytest

from batching.replica import Lifecycle
from batching.request import Outcome, Rejected, ReplicaId, ServiceTier
from config.schema import Mechanism, Scheduling
from tests.support.scheduling import leases, placed, profile, request, scheduler

L4 = profile("l4", gpu="L4-24G", usd_per_hour=3.6)
H100 = profile("h100")


def first_token_s(without: Any, **changes: Any):
    """Predicted for one request on an idle replica."""
    built = scheduler(L4, scheduling={"without": without, "objectives": {"ttft_s": 100.0}})
    built.submit(request(**{"prompt_tokens": 4000, **changes}), 0.0)
    return built.advance(0.0)[0].placement.score.ttft_s


def speed(without: Any):
    """An L4 is known to be slow: a second for 4,000 tokens, which takes the neutral machine a third of it."""
    return first_token_s(without) > 0.9


def attention(without: Any):
    """A prompt twice as long takes more than twice as long."""
    return first_token_s(without, prompt_tokens=8000) > 2 * first_token_s(without) + 0.01


def order(without: Any, *arrivals: dict[str, Any], now: float = 0.2):
    """Who is next behind one that runs, as they arrive at time 0 for a first token within a second."""
    built = scheduler(profile(max_num_seqs=1), scheduling={"without": without})
    built.submit(request("first"), 0.0)
    lease = leases(built.advance(0.0))[0]
    for number, changes in enumerate(arrivals):
        built.submit(request(f"r{number}", **changes), max(0.0, changes.get("arrived_s", 0.0)))
    built.advance(now)
    built.finish(lease.id, now, outcome=Outcome.COMPLETED)
    return placed(built.advance(now))


def deadlines(without: Any):
    """Who must have its first token sooner goes before who came sooner."""
    return order(without, {"prompt_tokens": 3000}, {"prompt_tokens": 100}) == ["r1"]


def late_last(without: Any):
    """Who came when the other's objective had passed goes first, as it can still be served in time."""
    return order(without, {}, {"arrived_s": 1.5}, now=2.0) == ["r1"]


def early_refusal(without: Any):
    """Who must be placed within a second while ten seconds' worth waits is refused at once."""
    built = scheduler(profile(max_num_seqs=1), scheduling={"without": without})
    for number in range(150):
        built.submit(request(f"r{number}"), 0.0)
    [lease] = leases(built.advance(0.0))
    for step in range(1, 51):
        built.finish(lease.id, 0.1 * step, outcome=Outcome.COMPLETED)
        [lease] = leases(built.advance(0.1 * step))
    try:
        built.submit(request("last", deadline_s=6.0, arrived_s=-10.0), 5.0)
    except Rejected:
        return True
    return False


def hold(without: Any):
    """Nothing is placed where it will be late while the busy H100 could still meet the objective."""
    busy = profile("h100", max_num_seqs=1, usd_per_hour=0.1)
    built = scheduler(busy, L4, scheduling={"without": without, "objectives": {"ttft_s_per_prompt_token": 0}})
    built.submit(request("first"), 0.0)
    assert built.advance(0.0)[0].placement.replica == "h100"
    built.submit(request("r", prompt_tokens=8000), 0.0)
    return built.advance(0.0) == []


def late_binding(without: Any):
    """No more than two steps' worth of prompts is sent to an engine."""
    built = scheduler(profile(max_num_batched_tokens=128), scheduling={"without": without})
    for number in range(6):
        built.submit(request(f"r{number}"), 0.0)
    return len(placed(built.advance(0.0))) < 6


def itl_guard(without: Any):
    """A long prompt waits while a stream that has just begun could not bear it."""
    built = scheduler(L4, scheduling={"without": without, "objectives": {"ttft_s": 100.0}})
    built.submit(request("stream"), 0.0)
    built.on_first_token(leases(built.advance(0.0))[0].id, 0.0)
    built.submit(request("long", prompt_tokens=8000), 0.0)
    return built.advance(0.0) == []


def kv_forecast(without: Any):
    """More is let in than the high quantile of every length would."""
    built = scheduler(profile(kv_blocks=400, max_num_seqs=64), scheduling={"without": without})
    for number in range(480):
        built._estimators.outputs.learn("m", 600, 500 if number % 12 == 0 else 20)
    for number in range(40):
        built.submit(request(f"r{number}", max_output_tokens=600), 0.0)
    return len(placed(built.advance(0.0))) > 10


def prefix(without: Any):
    """A second prompt goes where the first one's chunks are cached."""
    built = scheduler(profile("a"), profile("b"), scheduling={"without": without})
    chunks = {"prompt_tokens": 1000, "prefix_hashes": (1, 2, 3), "prefix_chunk_tokens": 256}
    built.submit(request("r0", **chunks), 0.0)
    first = built.advance(0.0)[0]
    built.on_first_token(first.lease.id, 0.1)
    built.submit(request("r1", arrived_s=0.1, **chunks), 0.1)
    return built.advance(0.1)[0].placement.replica == first.placement.replica


def prefix_hold(without: Any):
    """A turn of a conversation waits for the replica that has its beginning, while that one prefills another prompt."""
    large = {"kv_blocks": 20_000, "max_model_len": 131_072}
    built = scheduler(profile("a", **large), scheduling={"without": without})
    chunks = {"prefix_hashes": tuple(range(16)), "prefix_chunk_tokens": 512}
    built.submit(request("first", prompt_tokens=8200, **chunks), 0.0)
    lease = leases(built.advance(0.0))[0]
    built.on_first_token(lease.id, 0.4)
    built.finish(lease.id, 0.5, outcome=Outcome.COMPLETED, output_tokens=10)
    built.submit(request("other", arrived_s=1.0, prompt_tokens=6000), 1.0)
    built.advance(1.0)
    built.add_replica(profile("b", **large), Lifecycle.READY, 1.0)
    built.submit(request("turn", arrived_s=1.0, prompt_tokens=8500, **chunks), 1.0)
    return built.advance(1.0) == []


def cost(without: Any):
    """Of two that meet the objective with ease the cheaper, not the faster."""
    built = scheduler(H100, profile("l4", gpu="L4-24G", usd_per_hour=0.1), scheduling={"without": without})
    built.submit(request(), 0.0)
    return built.advance(0.0)[0].placement.replica == "l4"


def floors(without: Any):
    """Batch has a turn although priority never ends."""
    built = scheduler(profile(max_num_seqs=1), scheduling={"without": without})
    built.submit(request("first"), 0.0)
    lease = leases(built.advance(0.0))[0]
    built.submit(request("bulk", service_tier=ServiceTier.BATCH), 0.0)
    taken = []
    for number in range(40):
        now = 0.01 * (number + 1)
        built.submit(request(f"p{number}", service_tier=ServiceTier.PRIORITY, arrived_s=now), now)
        built.finish(lease.id, now, outcome=Outcome.COMPLETED)
        decisions = built.advance(now)
        taken += placed(decisions)
        lease = leases(decisions)[0]
    return "bulk" in taken


def sparing(without: Any):
    """While others are watched, batch is not prefilled everywhere."""
    built = scheduler(*(profile(f"a{number}") for number in range(6)), scheduling={"without": without})
    for number in range(60):
        now = number / 30
        built.submit(request(f"r{number}", prompt_tokens=4000, arrived_s=now), now)
        for lease in leases(built.advance(now)):
            built.on_first_token(lease.id, now)
            built.finish(lease.id, now, outcome=Outcome.COMPLETED)
    for number in range(12):
        built.submit(request(f"b{number}", prompt_tokens=1000, service_tier=ServiceTier.BATCH), 2.0)
    return len({lease.replica for lease in leases(built.advance(2.0))}) < 5


def audit(without: Any):
    """A bound that is right nearly always is expected again, where the learned mean is seldom right."""
    built = scheduler(profile(), scheduling={"without": without})
    machine_s = []
    for number in range(120):
        now = float(number)
        built.submit(request(arrived_s=now), now)
        decision = built.advance(now)[0]
        machine_s.append(decision.placement.score.machine_s)
        tokens = 60 if number % 8 else 30
        built.finish(decision.lease.id, now + 0.5, outcome=Outcome.COMPLETED, output_tokens=tokens)
    return machine_s[-1] == machine_s[0]


BEHAVIOURS: dict[Mechanism, Callable[[Any], bool]] = {
    Mechanism.SPEED: speed,
    Mechanism.ATTENTION: attention,
    Mechanism.DEADLINES: deadlines,
    Mechanism.LATE_LAST: late_last,
    Mechanism.HOLD: hold,
    Mechanism.LATE_BINDING: late_binding,
    Mechanism.ITL_GUARD: itl_guard,
    Mechanism.KV_FORECAST: kv_forecast,
    Mechanism.PREFIX: prefix,
    Mechanism.PREFIX_HOLD: prefix_hold,
    Mechanism.COST: cost,
    Mechanism.FLOORS: floors,
    Mechanism.SPARING: sparing,
    Mechanism.AUDIT: audit,
    Mechanism.EARLY_REFUSAL: early_refusal,
}


@pytest.mark.parametrize("mechanism", Mechanism)
def test_a_mechanism_does_what_it_is_named_for_until_switched_off(mechanism: Mechanism):
    """With everything on its behaviour shows; without it, and it alone, the behaviour is gone."""
    shows = BEHAVIOURS[mechanism]
    assert shows(())
    assert not shows((mechanism,))


# What is pointless, or does not show in the scene above, without another mechanism.
LEAN_ON: dict[Mechanism, set[Mechanism]] = {
    Mechanism.LATE_LAST: {Mechanism.HOLD, Mechanism.PREFIX_HOLD},  # who is held turns late in the end
    Mechanism.PREFIX: {Mechanism.PREFIX_HOLD},
    Mechanism.LATE_BINDING: {Mechanism.PREFIX_HOLD},  # a replica behind whose prompts any other may queue has room
    Mechanism.SPEED: {Mechanism.HOLD, Mechanism.ITL_GUARD},  # told of one kind of machine only
}


@pytest.mark.parametrize("mechanism", Mechanism)
def test_the_others_do_not_need_it(mechanism: Mechanism):
    """Without one mechanism the others' behaviours are still there, but for those that lean on it."""
    gone = {mechanism} | LEAN_ON.get(mechanism, set())
    assert {other for other, shows in BEHAVIOURS.items() if shows((mechanism,))} == set(Mechanism) - gone


def test_all_can_be_off_at_once():
    """What is left is first come, first served, by tier: it places, and gives everything back."""
    built = scheduler(L4, H100, scheduling={"without": list(Mechanism)})
    assert Scheduling(without=frozenset(Mechanism)).without == frozenset(Mechanism)
    for number in range(30):
        built.submit(request(f"r{number}"), 0.0)
    running = leases(built.advance(0.0))
    assert {lease.replica for lease in running} == {ReplicaId("l4"), ReplicaId("h100")}
    for lease in running:
        built.finish(lease.id, 1.0, outcome=Outcome.COMPLETED)
    assert len(placed(built.advance(1.0))) == 14
    built.check()
