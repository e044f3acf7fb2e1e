"""A card from what is known, and the money of all cards."""

from batching.replica import EngineLoad, Lifecycle, ReplicaState
from config.schema import CostTier
from router.board.cards import GONE, Facts, card, cards, money
from router.board.document import Pulse
from router.board.part import NOTHING, Held
from tests.support.board_documents import card as shown
from tests.support.scheduling import profile


def state(
    name: str = "a", *, age_s: float = 0.3, lifecycle: Lifecycle = Lifecycle.READY, **changes: object
) -> ReplicaState:
    load = EngineLoad(observed_s=0.0, waiting=2, kv_usage_ratio=0.123456)
    return ReplicaState(
        profile=profile(name, **changes), lifecycle=lifecycle, running=1, max_num_seqs=8, prefill_tokens=0, held_blocks=1,
        reserved_blocks=2, foreign_blocks=0, load=load, load_age_s=age_s,
    )  # fmt: skip


FACTS = Facts(backend="vllm", why="", reason="reclaim", deadline_unix_s=1000.0, on_demand_usd_per_hour=4.8)


def test_a_card_shows_all_workers_and_what_the_engine_says():
    """Running and blocks from all together, not from the worker that is asked."""
    found = card(state(), FACTS, Held(5, 50, 70, 6, 100.0, 30.0, "half_open"))
    assert (found.running, found.held_blocks, found.reserved_blocks, found.foreign_blocks) == (5, 50, 70, 6)
    assert (found.output_tokens_per_s, found.input_tokens_per_s, found.circuit) == (100.0, 30.0, "half_open")
    assert (found.waiting, found.kv_usage_ratio, found.kv_blocks, found.max_num_seqs) == (2, 0.1235, 1000, 8)
    assert (found.reason, found.deadline_unix_s, found.lifecycle, found.backend) == ("reclaim", 1000.0, "ready", "vllm")
    assert (found.usd_per_hour, found.on_demand_usd_per_hour) == (3.6, 4.8)
    assert found.usd_per_million_output_tokens == 10.0  # 3.6 dollars an hour are 1e-3 a second, for 100 tokens


def test_what_nobody_knows_is_none():
    """Not zero: the price of a token where there are none, the figures of an engine that tells nothing, another tier's price."""
    quiet = ReplicaState(
        profile=profile(cost_tier=CostTier.SPOT), lifecycle=Lifecycle.DOWN, running=0, max_num_seqs=None, prefill_tokens=0,
        held_blocks=0, reserved_blocks=0, foreign_blocks=0,
    )  # fmt: skip
    found = card(quiet, GONE, NOTHING)
    assert found.usd_per_million_output_tokens is None
    assert found.on_demand_usd_per_hour is None
    assert (found.waiting, found.kv_usage_ratio, found.figures_age_s, found.max_num_seqs) == (None, None, None, None)


def test_a_card_changes_only_with_news():
    """Figures that are fresh at each look are no news; that they get old is."""
    assert card(state(age_s=0.1), FACTS, NOTHING) == card(state(age_s=1.1), FACTS, NOTHING)
    assert card(state(age_s=12.0), FACTS, NOTHING).figures_age_s == 10.0


def test_cards_come_in_the_fleets_order_and_know_who_has_left_it():
    """One that a reload has removed is shown while its last requests run."""
    found = cards([state("b"), state("a")], {"b": FACTS}, {"a": Held(1)})
    assert [(one.name, one.running) for one in found] == [("b", 0), ("a", 1)]
    assert found[1].why == GONE.why


def test_money_is_of_the_machines_that_are_there():
    """One that is down costs nothing that we know of; busy are those on which something ran in the last seconds."""
    fleet = [
        shown("a", usd_per_hour=2.0, running=1, on_demand_usd_per_hour=4.0),
        shown("b", usd_per_hour=3.0, output_tokens_per_s=5.0, on_demand_usd_per_hour=3.0),
        shown("c", usd_per_hour=1.2, on_demand_usd_per_hour=3.0),
        shown("d", usd_per_hour=9.0, lifecycle="down"),
    ]
    found = money(fleet, [])
    assert (found.usd_per_hour, found.busy_usd_per_hour, found.on_demand_usd_per_hour) == (6.2, 5.0, 10.0)
    assert found.usd_per_million_output_tokens is None
    assert money([*fleet, shown("e")], []).on_demand_usd_per_hour is None


def test_a_tokens_price_is_of_the_last_minute():
    """Older pulses do not count, and a gateway that is younger than a minute divides by its age."""
    fleet = [shown("a", usd_per_hour=3.6)]
    lately = [Pulse(unix_s=float(at), output_tokens=100 if at >= 60 else 10_000) for at in range(120)]
    assert money(fleet, lately).usd_per_million_output_tokens == 10.0
    assert money(fleet, lately[-5:]).usd_per_million_output_tokens == 10.0
