"""Where a request goes, row by row; the comment marks the row that should win."""

from dataclasses import replace
from typing import Any

import pytest

from batching.estimators import KnownLength
from batching.offer import Offer
from batching.placement import Need, blocks_if_fits, place
from batching.request import ReplicaId
from config.gpus import step_model
from config.schema import CostTier
from tests.support.scheduling import request


def offer(name: Any, *, gpu: str = "H100-80G", usd: float = 3.6, learned: Any = (1.0, 1.0), **changes: Any):
    """An open replica with ten sequences running; `learned`: the factors of prefill and of decoding."""
    step, (prefill, decode) = step_model(gpu), learned
    built = Offer(
        replica=ReplicaId(name),
        usd_per_s=usd / 3600,
        open=True,
        empty=False,
        free_sequences=10,
        free_blocks=1000,
        headroom_ratio=0.5,
        longest_tokens=8192,
        max_model_len=8192,
        token_s=prefill * step.token_s,
        weights_s=prefill * step.weights_s,
        attention_s=prefill * step.attention_s,
        kv_token_s=decode * step.kv_token_s,
        chunk_s=prefill * step.overhead_s,
        decode_s=decode * (step.overhead_s + step.weights_s),
        price_decode_s=step.overhead_s + step.weights_s,
        price_factor=1 / prefill,
    )
    for field, value in changes.items():
        setattr(built, field, value)
    return built


def need(*, ttft_s: float = 1.0, tpot_s: float = 0.1, cached: Any = None, **changes: Any):
    return Need(
        request=request(**{"prompt_tokens": 1000, **changes}),
        ticket=7,
        forecast_tokens=200,
        expected_tokens=100,
        ttft_objective_s=ttft_s,
        tpot_objective_s=tpot_s,
        cached_tokens=cached or {},
    )


ROWS = {
    "cheaper machine for the same work": (
        need(),
        [offer("a"), offer("b", usd=1.8)],  # b: half the price
        ("b", "cost"),
    ),
    "dear but fast beats cheap and slow by the dollar of work": (
        need(),
        [offer("a"), offer("b", gpu="L4-24G", usd=3.0)],  # a: eleven times faster for 1.2 times the price
        ("a", "cost"),
    ),
    "the objective comes before the price": (
        need(tpot_s=0.02),
        [offer("a"), offer("b", gpu="L4-24G", usd=0.01)],  # a: an L4 needs 70 ms a token
        ("a", "cost"),
    ),
    "nobody meets the objective: earliest first token": (
        need(ttft_s=0.001),
        [offer("a", usd=0.1, prefill_end_s=0.13), offer("b", usd=9)],  # b: nothing is ahead
        ("b", "fallback"),
    ),
    "a queue of prompts misses the objective": (
        need(ttft_s=0.2),
        [offer("a", usd=0.1, prefill_end_s=0.29), offer("b", usd=9)],  # b: in time
        ("b", "cost"),
    ),
    "what was admitted takes its rest however late it is": (
        need(ttft_s=0.2),
        [offer("a", usd=0.1, prefill_end_s=-1.0, prefill_rest_s=0.17), offer("b", usd=9)],  # b: nothing is left there
        ("b", "cost"),
    ),
    "the step under way counts where nothing is prefilled": (
        need(ttft_s=0.2),
        [offer("a", usd=0.1, step_wait_s=0.07), offer("b", usd=9)],  # b: 35 ms of 200, not 105
        ("b", "cost"),
    ),
    "the objective's time runs from arrival": (
        need(ttft_s=0.2, arrived_s=-0.02),
        [
            offer("a", usd=0.1, step_wait_s=0.01),
            offer("b", usd=9),
        ],  # b: 35 ms are within a fifth of the 180 that are left, 45 are not
        ("b", "cost"),
    ),
    "met, but not with ease: the earliest, whatever it costs": (
        need(ttft_s=0.1),
        [offer("a", usd=0.1, step_wait_s=0.05), offer("b", usd=9, step_wait_s=0.03)],  # b: 65 of 100 ms, a 85
        ("b", "fallback"),
    ),
    "a cached prefix is prefill saved": (
        need(cached={"b": 900}),
        [offer("a", headroom_ratio=0.9), offer("b")],  # b: 900 tokens less to do
        ("b", "prefix_hit"),
    ),
    "a prefix cache that never hits is not believed": (
        need(cached={"b": 900}),
        [offer("a", headroom_ratio=0.9), offer("b", prefix_trust_ratio=0.0)],  # a: more headroom
        ("a", "kv_headroom"),
    ),
    "equal: most headroom": (
        need(),
        [offer("a"), offer("b", headroom_ratio=0.6)],  # b
        ("b", "kv_headroom"),
    ),
    "of those that cost about the same the earliest": (
        need(),
        [offer("a", headroom_ratio=0.9, step_wait_s=0.05), offer("b", usd=3.8)],  # b: five per cent dearer
        ("b", "kv_headroom"),
    ),
    "equal in all: the id": (
        need(),
        [offer("b"), offer("a")],  # a
        ("a", "kv_headroom"),
    ),
    "reserved is paid for": (
        need(),
        [offer("a", usd=0.5), offer("b", usd=0.0, cost_tier=CostTier.RESERVED)],  # b: costs nothing more
        ("b", "cost"),
    ),
    "among machines without a price the one that works least": (
        need(cached={"b": 512}),
        [offer("a", usd=0, headroom_ratio=0.9), offer("b", usd=0)],  # b
        ("b", "prefix_hit"),
    ),
    "learned slowness counts against the objective": (
        need(),
        [
            offer("a", learned=(1.0, 20.0), headroom_ratio=0.9),
            offer("b"),
        ],  # b: as the prior says; a would take 160 ms a token
        ("b", "cost"),
    ),
    "learned slowness does not move the price": (
        need(),
        [
            offer("a", learned=(1.25, 1.25)),
            offer("b", headroom_ratio=0.9),
        ],  # b: as cheap, and sooner; a was merely busy a moment ago
        ("b", "kv_headroom"),
    ),
    "a prediction near the objective is no promise": (
        need(tpot_s=0.0088),
        [offer("a", usd=0.1), offer("b", learned=(1.0, 0.5))],  # b: a's 8.0 ms leave no tenth of 8.8 ms
        ("b", "cost"),
    ),
    "a tier the request excludes": (
        need(cost_tiers=frozenset({CostTier.ON_DEMAND})),
        [offer("a"), offer("b", usd=0.1, cost_tier=CostTier.SPOT)],  # a: the only one allowed
        ("a", "cost"),
    ),
    "a replica tried before": (
        need(avoid=frozenset({ReplicaId("b")})),
        [offer("a"), offer("b", usd=0.1)],  # a
        ("a", "cost"),
    ),
}


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_marked_row_wins(row: str):
    """Filter, then objectives, then money, then machine time, then headroom, then id."""
    wanted, offers, expected = ROWS[row]
    for order in (offers, offers[::-1]):
        placement = place(wanted, order)
        assert placement is not None
        assert (placement.replica, placement.reason) == expected


@pytest.mark.parametrize(
    "changes",
    [
        {"open": False},
        {"protected_for": 8},
        {"free_sequences": 0},
        {"free_blocks": 74},  # 1000 + 200 tokens need 75
        {"free_prefill_tokens": 999},
        {"longest_tokens": 1000},
        {"due_s": 0.02, "pace_s": 0.01},  # 35 ms of prefill hold the streams up by 25
    ],
    ids=str,
)
def test_what_does_not_fit_is_no_candidate(changes: Any):
    """Each budget alone forbids the placement; an empty replica is only bound by what it could ever hold."""
    tight = offer("a", **changes)
    assert place(need(), [tight]) is None
    assert blocks_if_fits(need(), tight) is None
    tight.empty = True
    assert (place(need(), [tight]) is not None) == bool(
        {"free_sequences", "free_blocks", "free_prefill_tokens", "due_s"} & set(changes)
    )


def test_without_money_the_earliest_first_token():
    """`by_cost` off: among those that meet the objectives the fastest, not the cheapest."""
    offers = [offer("a", usd=0.1, step_wait_s=0.01), offer("b", usd=9)]
    by_cost, fastest = place(need(), offers), place(need(), offers, by_cost=False)
    assert by_cost is not None
    assert fastest is not None
    assert (by_cost.replica, fastest.replica) == ("a", "b")


def test_held_where_no_room_meets_the_objective():
    """`hold` gives nothing rather than a miss; it changes nothing where some replica with room meets it."""
    late, timely = offer("a", prefill_end_s=2.0), offer("b", usd=9)
    assert place(need(), [late], hold=True) is None
    assert place(need(), [late]) is not None
    placement = place(need(), [late, timely], hold=True)
    assert placement is not None
    assert placement.replica == "b"


def test_met_by_a_hair_is_not_met():
    """A prediction must leave a tenth of the objective."""
    placement = place(need(), [offer("a")])
    assert placement is not None
    ttft_s = placement.score.ttft_s
    assert place(need(ttft_s=ttft_s / 0.89), [offer("a")], hold=True) is not None
    assert place(need(ttft_s=ttft_s / 0.91), [offer("a")], hold=True) is None


def test_what_a_forecast_of_the_sum_lets_in():
    """Blocks at the high quantile do not fit, yet the sum of what all will hold does; one token less and it does not."""
    # 1,000 tokens, half a block, and 200 at the horizon behind the 200th: nothing was learned, so they are certain.
    wanted = need(known_output_tokens=200)
    wanted = replace(wanted, output_bound=200, lengths=KnownLength(200))
    assert place(wanted, [offer("a", free_blocks=0)]) is None
    for room, fits in ((1208.0, True), (1207.0, False)):
        tight = offer("a", free_blocks=0, known_free_tokens=(9999.0, 9999.0, 9999.0, 9999.0, room, 9999.0))
        assert (place(wanted, [tight]) is not None) == fits


def test_the_protected_ticket_itself_may_go_there():
    """Protection keeps others out, not the one it is for."""
    assert place(need(), [offer("a", protected_for=7)]) is not None


def test_a_spot_reclaim_costs_its_expected_loss():
    """At the same price a spot machine is dearer by hazard times work lost - which is little."""
    placement = place(need(), [offer("a"), offer("b", cost_tier=CostTier.SPOT)])
    assert placement is not None
    usd = {score.replica: score.usd for score in placement.candidates}
    assert 1 < usd[ReplicaId("b")] / usd[ReplicaId("a")] < 1.001


def test_a_placement_explains_itself():
    """One line with the values that decided."""
    placement = place(need(cached={"a": 640}), [offer("a"), offer("b")])
    assert placement is not None
    assert placement.explain() == (
        "a [on_demand] by prefix_hit: ttft 0.014s tpot 8.0ms $37.13e-6 for 0.0371 machine-s cached 640 headroom 925 "
        "objective met (2 candidates)"
    )
