"""A column at a time or an offer at a time: the same placement, to the last bit."""

from copy import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching import filling
from batching.blocks import UNBOUNDED
from batching.column_placement import place_among
from batching.columns import Columns
from batching.estimators import KnownLength
from batching.offer import Offer
from batching.placement import Need, place
from batching.request import Outcome, ReplicaId, ServiceTier
from batching.window import Window
from config.schema import CostTier
from tests.support.scheduling import leases, profile, request, scheduler

NAMES = tuple(ReplicaId(name) for name in "abcdefgh")
SECONDS = st.sampled_from([0.0, 0.001, 0.1, 0.1001, 0.35])  # few, so that there are ties and near ties


def mostly(usual: Any, *others: Any):
    """Most offers must have room, or there is nothing to choose from."""
    return st.sampled_from([usual] * (3 * len(others)) + list(others))


offers_by_name = st.fixed_dictionaries(
    {
        "cost_tier": st.sampled_from(CostTier),
        "usd_per_s": st.sampled_from([0.0, 0.001, 0.0010001, 0.01]),
        "open": mostly(True, False),
        "protected_for": mostly(None, 7, 8),
        "empty": mostly(False, True),
        "free_sequences": mostly(4, 0, 1, 2),
        "spared_sequences": st.integers(0, 2),
        "free_prefill_tokens": mostly(UNBOUNDED, 100, 99, 60, -5),
        "prefill_tokens": st.sampled_from([0, 40, 3000]),
        "free_blocks": mostly(1000, UNBOUNDED, 13, 12, 0, -3),
        "known_free_tokens": st.sampled_from([None, (9999.0,) * 6, (150.0,) * 6]),
        "headroom_ratio": mostly(0.5, 0.05, 0.1, 1.0),
        "max_model_len": mostly(8192, UNBOUNDED, 150, 100),
        "longest_tokens": mostly(8192, UNBOUNDED, 101, 100),
        "block_size": st.sampled_from([16, 16, 32]),
        "prefill_end_s": mostly(0.0, 10.1, 12.0),
        "prefill_rest_s": SECONDS,
        "step_wait_s": SECONDS,
        "chunk_tokens": st.sampled_from([2048, 64, 33]),
        "token_s": st.sampled_from([1e-5, 1e-4, 1.003e-4]),
        "weights_s": st.sampled_from([0.0, 0.001]),
        "attention_s": st.sampled_from([0.0, 1e-9, 1e-6]),
        "chunk_s": st.sampled_from([0.0, 0.001, 0.1]),
        "decode_s": st.sampled_from([0.001, 0.05, 0.0899]),
        "kv_token_s": st.sampled_from([0.0, 1e-6]),
        "due_s": mostly(float("inf"), 10.05, 10.5, 11.0),
        "coming_due_s": mostly(float("inf"), 9.9, 10.0, 10.05, 10.5, 11.0),
        "pace_s": st.sampled_from([0.0, 0.095]),
        "held_up_ratio": st.sampled_from([0.0, 0.5, 1.0]),
        "price_decode_s": st.sampled_from([0.001, 0.05]),
        "price_factor": st.sampled_from([1.0, 1.1]),
        "batch": st.sampled_from([1, 32]),
        "prefix_trust_ratio": st.sampled_from([0.0, 0.37, 1.0]),
        "window": mostly(None, Window(), Window(10.2), Window(20.0, 2.0), Window(longest_s=0.5), Window(9.0)),
    }
)
needs = st.builds(
    Need,
    request=st.builds(
        request,
        arrived_s=st.sampled_from([9.0, 9.9, 10.0]),
        prompt_tokens=st.sampled_from([1, 100, 129]),
        sequences=st.sampled_from([1, 1, 3]),
        service_tier=st.sampled_from(ServiceTier),
        cost_tiers=mostly(None, frozenset({CostTier.SPOT}), frozenset(CostTier)),
        avoid=mostly(frozenset(), frozenset(NAMES[:2])),
    ),
    ticket=st.just(7),
    forecast_tokens=st.sampled_from([0, 60]),
    expected_tokens=st.sampled_from([0, 40]),
    ttft_objective_s=st.sampled_from([0.5, 2.0, 30.0, float("inf")]),
    tpot_objective_s=st.sampled_from([0.1, float("inf")]),
    min_output_tokens=st.integers(0, 1),
    lengths=st.none() | st.just(KnownLength(60)),
    cached_tokens=st.dictionaries(st.sampled_from(NAMES), st.sampled_from([1, 64, 100])),
)


@settings(max_examples=200)
@given(
    need=needs,
    fields=st.lists(offers_by_name, min_size=4, max_size=len(NAMES)),
    hold=st.booleans(),
    by_cost=st.booleans(),
    since=mostly(-1, 0, 2),
)
def test_columns_place_as_the_loop_does(need: Any, fields: Any, hold: Any, by_cost: Any, since: Any):
    """Choice, reason, figures and what is noted of refused streams; equal runners-up are whoever comes first."""
    offers = [
        Offer(replica=name, epoch=i % 4, **values) for i, (name, values) in enumerate(zip(NAMES, fields, strict=False))
    ]
    columns, mirrored = Columns(), [copy(offer) for offer in offers]
    for offer in reversed(mirrored):
        columns.add(offer)
    columns.read()
    tested = columns.grown("m", mirrored, since)
    by_loop = place(need, [offer for offer in offers if offer.epoch > since], 10.0, hold=hold, by_cost=by_cost)
    by_column = place_among(need, columns, tested, 10.0, hold=hold, by_cost=by_cost)
    assert [offer.wanted_due_s for offer in offers] == [offer.wanted_due_s for offer in mirrored]
    if by_loop is None or by_column is None:
        assert by_loop is by_column
        return
    assert (by_loop.replica, by_loop.cost_tier, by_loop.reason) == (
        by_column.replica,
        by_column.cost_tier,
        by_column.reason,
    )
    assert (by_loop.score, by_loop.considered) == (by_column.score, by_column.considered)
    runners_up = [[(s.usd, s.machine_s) for s in p.candidates[1:]] for p in (by_loop, by_column)]
    assert runners_up[0] == runners_up[1]
    assert {type(figure) for figure in (by_column.score.usd, by_column.score.ttft_s)} == {float}


def test_columns_follow_each_change():
    """A row is what its offer says now, whoever came, went or changed in between."""
    columns = Columns()
    first, second = Offer(replica=NAMES[1], usd_per_s=2.0), Offer(replica=NAMES[0], cost_tier=CostTier.SPOT)
    columns.add(first)
    columns.add(second)
    columns.read()
    assert [offer.replica for offer in columns.offers] == ["a", "b"]
    assert (columns.numbers.usd_per_s.tolist(), columns.spot.tolist()) == ([0.0, 2.0], [0])
    first.usd_per_s, first.cost_tier = 3.0, CostTier.SPOT
    columns.change(first.replica)
    columns.read()
    assert (columns.numbers.usd_per_s.tolist(), columns.spot.tolist()) == ([0.0, 3.0], [0, 1])
    assert columns.grown("m", [first], -1).tolist() == [False, True]
    columns.remove(second.replica)
    columns.change(second.replica)
    columns.read()
    assert columns.grown("m", [first], -1).tolist() == [True]
    assert columns.spot.tolist() == [0]
    first.usd_per_s = 4.0
    with pytest.raises(AssertionError, match="columns"):
        columns.check()


def test_a_run_is_the_same_by_columns_and_by_the_loop(monkeypatch: pytest.MonkeyPatch):
    """Arrivals, first tokens, tokens and endings; scarce slots and cache, so that some wait."""

    def run(many: int) -> list[tuple[str, str]]:
        monkeypatch.setattr(filling, "MANY", many)
        kinds = ({"usd_per_hour": 2.0}, {"gpu": "L4-24G", "kv_blocks": 60}, {"cost_tier": CostTier.SPOT})
        built = scheduler(*(profile(f"r{n}", max_num_seqs=3, **kinds[n % 3]) for n in range(9)))
        running: list[Any] = []
        placements = []
        for step in range(120):
            now = step * 0.02
            hashes = tuple(hash((step % 5, depth)) for depth in range(4))
            prompt = 50 + step * 37 % 400
            built.submit(
                request(f"q{step}", arrived_s=now, prompt_tokens=prompt, prefix_hashes=hashes, prefix_chunk_tokens=32),
                now,
            )
            for lease in running:
                built.on_first_token(lease.id, now)
                built.on_tokens(lease.id, step % 60, now)
            if step % 3 == 0 and running:
                built.finish(running.pop(step % len(running)).id, now, outcome=Outcome.COMPLETED, output_tokens=40)
            if step % 20 == 0:  # three have a deadline, or what is said of it is taken back
                for number in range(3):
                    window = None if step % 40 else Window(now + 0.3 + number)
                    built.set_window(ReplicaId(f"r{number}"), window, now)
            decisions = built.advance(now)
            running += leases(decisions)
            placements += [(d.ticket.request.id, repr(d)) for d in decisions]
            built.check()
        return placements

    assert run(1) == run(1000)
