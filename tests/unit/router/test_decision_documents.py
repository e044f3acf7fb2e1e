"""Records as JSON and back: nothing that the decision needs is lost, nothing that names anybody leaves."""

import msgspec
import pytest

from batching.decision_record import DecisionRecord, decide_again
from batching.request import Outcome, ReplicaId, ServiceTier
from batching.window import Window
from config.schema import CostTier
from router.decision_documents import FIELDS, Pseudonyms, document, parsed
from tests.support.decisions import Kept
from tests.support.scheduling import profile, request

NAMES = Pseudonyms(b"a key of the tests")


def placed() -> DecisionRecord:
    """With everything a request can say, and one candidate that is full."""
    kept = Kept(profile("full", usd_per_hour=0.1, max_num_seqs=1), profile("b"), profile("c", usd_per_hour=9.0))
    kept.place(request("first"))
    kept.scheduler.set_window(ReplicaId("b"), Window(longest_s=1e6), 0.0)
    asked = request(
        "r", tenant="alice@example.com", service_tier=ServiceTier.BATCH, cost_tiers=frozenset({CostTier.ON_DEMAND}),
        avoid=frozenset({"c"}), prefix_hashes=(11, 12, 13), prefix_chunk_tokens=512, deadline_s=9.0,
    )  # fmt: skip
    kept.answer(kept.place(asked), first_s=0.25, last_s=1.0, tokens=12)
    return kept.last


def through_json(record: DecisionRecord, *, named: bool) -> DecisionRecord:
    told = document(record, NAMES, unix_at_zero=1e9, named=named)
    return parsed(msgspec.json.decode(msgspec.json.encode(told)))


@pytest.mark.parametrize("named", [True, False])
def test_a_record_survives_json(named: bool):
    """Infinite objectives, sets, tiers and every float to the bit: it decides again as it did."""
    record = placed()
    record.placement.held_for = ReplicaId("full")
    again = through_json(record, named=named)
    assert (again.need, again.offers, again.survival) == (record.need, record.offers, record.survival)
    assert (again.placement, again.ended, again.hold) == (record.placement, record.ended, record.hold)
    assert [again.asked(name) for name in ("service_tier", "cost_tiers", "avoid")] == [
        ServiceTier.BATCH, frozenset({CostTier.ON_DEMAND}), frozenset({"c"}),
    ]  # fmt: skip
    decided = decide_again(again)
    assert decided is not None
    assert (decided.replica, decided.score) == (record.replica, record.placement.score)


@pytest.mark.parametrize("named", [True, False])
def test_nobody_is_named(named: bool):
    """Tenants and prompt hashes are pseudonyms of the process: the same for the same, another for others, and no way back."""
    text = msgspec.json.encode(document(placed(), NAMES, unix_at_zero=0.0, named=named)).decode()
    assert "alice" not in text
    again = through_json(placed(), named=named)
    assert again.prefix == tuple(map(NAMES.prefix, (11, 12, 13)))
    assert again.asked("tenant") == NAMES.tenant("alice@example.com") != Pseudonyms().tenant("alice@example.com")
    assert NAMES.tenant("anonymous") == "anonymous"


def test_what_people_read_has_names_and_scores():
    """Each candidate's offer by field, its score beside it, null where it had no room; the time as a date."""
    told = document(placed(), NAMES, unix_at_zero=1e9, named=True)
    assert told["at"] == "2001-09-09T01:46:40.000Z"
    assert told["request"]["service_tier"] == "batch"
    scores = {row["replica"]: row["score"] for row in told["offers"]}
    assert scores["full"] is None
    assert scores["b"] == told["choice"]["score"]
    assert told["ended"]["outcome"] == Outcome.COMPLETED


def test_a_field_unknown_then_has_its_default_now():
    """A recording of an older version lacks what was added since, and one of a newer has more: both are read."""
    told = document(placed(), NAMES, unix_at_zero=None, named=False)
    fields = {name: list(row) for name, row in FIELDS.items()}
    dropped = fields["offers"].index("prefix_trust_ratio")
    for row in [fields["offers"], *(rows := [list(row) for row in told["offers"]])]:
        del row[dropped]
    again = parsed({**told, "offers": [[*row, 1] for row in rows]}, {**fields, "offers": [*fields["offers"], "novel"]})
    assert again.offers == placed().offers


def test_what_it_cannot_do_without_is_missed():
    """A record without a field that has no default is an error that names it."""
    told = document(placed(), NAMES, unix_at_zero=None, named=True)
    del told["need"]["forecast_tokens"]
    with pytest.raises(ValueError, match="need lacks forecast_tokens"):
        parsed(told)
