"""Where a request goes, row by row; the comment marks the row that should win."""

from typing import Any

import pytest

from batching.offer import Offer
from batching.placement import Need, blocks_if_fits, place
from batching.request import ReplicaId
from config.gpus import step_model
from config.schema import CostTier
from tests.support.scheduling import request


def offer(name: Any, *, gpu: str = "H100-80G", usd: float = 3.6, **changes: Any):
    """An open replica with ten sequences running."""
    step = step_model(gpu)
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
        token_s=step.token_s,
        weights_s=step.weights_s,
        attention_s=step.attention_s,
        kv_token_s=step.kv_token_s,
        chunk_s=step.overhead_s,
        decode_s=step.overhead_s + step.weights_s,
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
        [offer("a", usd=0.1, prefill_tokens=4000), offer("b", usd=9)],  # b: nothing is ahead
        ("b", "fallback"),
    ),
    "a queue of prompts misses the objective": (
        need(ttft_s=0.1),
        [offer("a", usd=0.1, prefill_tokens=9000), offer("b", usd=9)],  # b: in time
        ("b", "cost"),
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
            offer("a", tpot_factor=20.0, headroom_ratio=0.9),
            offer("b"),
        ],  # b: as the prior says; a would take 160 ms a token
        ("b", "cost"),
    ),
    "learned slowness does not move the price": (
        need(),
        [
            offer("a", tpot_factor=0.8, ttft_factor=0.8),
            offer("b", headroom_ratio=0.9),
        ],  # b: a was merely idle a moment ago
        ("b", "kv_headroom"),
    ),
    "a prediction near the objective is no promise": (
        need(tpot_s=0.01),
        [offer("a", tpot_factor=1.0, usd=0.1), offer("b", tpot_factor=0.5)],  # b: a's 8 ms leave no margin to 10 ms
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
        {"free_sequences", "free_blocks", "free_prefill_tokens"} & set(changes)
    )


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
