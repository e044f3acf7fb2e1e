"""The decision ledger: what is kept of a placement, how much, and that it can be decided again."""

from batching.decision_record import OFFER_FIELDS, PREFIX_TOKENS, decide_again, offers_of, score_on, thinned
from batching.decisions import Decisions
from batching.policies import BASELINES
from batching.request import Outcome, ReplicaId
from tests.support.decisions import Kept
from tests.support.scheduling import profile, request

CHEAP, DEAR = profile("cheap", usd_per_hour=1.0), profile("dear", usd_per_hour=4.0)


def test_a_record_has_question_candidates_choice_and_reason():
    """What went in, every candidate's offer, who was chosen and why; queue time and lease time."""
    kept = Kept(CHEAP, DEAR)
    kept.place(request("a", arrived_s=3.0), 3.0)
    record = kept.last
    assert (record.request_id, record.replica, record.placed_s, record.queued_s) == ("a", "cheap", 3.0, 3.0)
    assert (record.asked("prompt_tokens"), record.needed("forecast_tokens")) == (100, 60)
    assert sorted(offer.replica for offer in offers_of(record)) == ["cheap", "dear"]
    assert (record.placement.reason, record.placement.considered, record.left_out) == ("cost", 2, 0)


def test_offers_are_kept_as_they_were():
    """The scheduler rewrites an offer the moment something is placed there; the record does not move with it."""
    kept = Kept()
    kept.place(request("a"))
    kept.place(request("b"))
    second, first = kept.decisions.recent(limit=2)
    assert [offer.empty for offer in offers_of(first)] == [True]
    assert [offer.free_sequences for offer in offers_of(second)] == [7]


def test_what_comes_of_it_is_filled_in():
    """First token, tokens, the engine's own counts and the outcome; before that, what is known by now."""
    kept = Kept()
    lease = kept.place(request("a"))
    kept.scheduler.on_first_token(lease.id, 0.5)
    kept.scheduler.on_tokens(lease.id, 7, 0.8)
    running = kept.last.end()
    assert (running.outcome, running.first_token_s, running.emitted_tokens) == (None, 0.5, 7)
    kept.answer(lease, first_s=0.5, last_s=2.5, tokens=41, cached_tokens=16)
    end = kept.last.end()
    assert (end.outcome, end.finished_s, end.first_token_s, end.last_token_s) == (Outcome.COMPLETED, 2.5, 0.5, 2.5)
    assert (end.tokens, end.cached_tokens, end.prompt_tokens) == (41, 16, 100)
    assert kept.last.lease is None  # a record that has ended holds nothing of the scheduler's


def test_the_ring_is_bounded_and_a_finish_after_it_is_no_matter():
    """The oldest go first, whether they have ended or not; what ends is passed on all the same."""
    done: list[str] = []
    kept = Kept(
        profile(max_num_seqs=99), decisions=Decisions(ring=2, on_done=lambda record, _: done.append(record.request_id))
    )
    leases = [kept.place(request(name)) for name in "abc"]
    assert [record.request_id for record in kept.decisions.recent(limit=9)] == ["c", "b"]
    kept.scheduler.finish(leases[0].id, 1.0, outcome=Outcome.FAILED)
    assert done == []  # nobody who gives a lease back waits for it
    kept.decisions.settle()
    assert done == ["a"]
    assert len(kept.decisions.unfinished()) == 2


def test_records_are_found_by_request_replica_and_model():
    """Newest first; what is given must match."""
    kept = Kept(CHEAP, DEAR)
    for name in "aba":
        kept.place(request(name))
    assert [r.request_id for r in kept.decisions.recent(limit=9)] == ["a", "b", "a"]
    assert [r.request_id for r in kept.decisions.recent(limit=1, request_id="a", model="m")] == ["a"]
    assert kept.decisions.recent(limit=9, replica="dear") == []
    assert kept.decisions.recent(limit=9, model="other") == []


def test_of_many_candidates_the_choice_and_the_likeliest_are_kept():
    """A bounded record: the choice and its runner-up always, the rest counted, and it is decided alike."""
    replicas = [profile(f"r{n:02}", usd_per_hour=9.0 * 0.8**n) for n in range(40)]
    kept = Kept(*replicas, decisions=Decisions(candidates=5))
    kept.place(request("a"))
    record = kept.last
    assert (len(record.offers), record.left_out, record.placement.considered) == (5, 35, 40)
    names = [offer.replica for offer in offers_of(record)]
    assert {score.replica for score in record.placement.candidates} <= set(names)
    assert set(names) == {ReplicaId(f"r{n}") for n in range(35, 40)}
    again = decide_again(record)
    assert again is not None
    assert again.replica == record.replica == "r39"


def test_a_record_decides_again_as_it_did():
    """The same code over the same values: the choice and its score are the same to the last bit."""
    kept = Kept(CHEAP, DEAR, profile("spare", usd_per_hour=2.0, max_num_seqs=2))
    for number in range(12):
        kept.place(request(str(number), prefix_hashes=(1, 2, 3), prefix_chunk_tokens=32), number / 50)
    for record in kept.decisions.recent(limit=99):
        again = decide_again(record)
        assert again is not None
        assert again.score == record.placement.score
        assert (again.replica, again.reason) == (record.replica, record.placement.reason)


def test_a_candidate_without_room_has_no_score():
    """What filtered it then filters it now."""
    kept = Kept(profile("full", usd_per_hour=0.2, max_num_seqs=1), DEAR)
    kept.place(request("a"))
    kept.place(request("b"))
    scores = {offer.replica: score_on(kept.last, offer) for offer in offers_of(kept.last)}
    assert (kept.last.replica, scores[ReplicaId("full")]) == ("dear", None)
    assert scores[ReplicaId("dear")] == kept.last.placement.score


def test_another_router_s_choice_is_kept_and_not_judged():
    """A baseline's counters are its own: the record shows whom it had to choose from, and nothing is said of predictions."""
    judged: list[object] = []
    decisions = Decisions(on_done=lambda _, found: judged.extend(found))
    kept = Kept(CHEAP, DEAR, decisions=decisions, policy=BASELINES["round_robin"](0))
    kept.answer(kept.place(request("a")), first_s=1.0, last_s=2.0, tokens=9)
    decisions.settle()
    assert kept.last.by_policy
    assert len(kept.last.offers) == 2
    assert judged == []
    assert not any(state.audit for state in kept.scheduler.states(3.0))


def test_a_prompt_s_hashes_are_thinned():
    """One for each 512 tokens, the last of each; a prompt of a million tokens does not make a record of megabytes."""
    assert thinned(tuple(range(16)), 64) == (7, 15)
    assert thinned((5, 6, 7), 512) == (5, 6, 7)
    assert thinned((5, 6), 64) == ()
    assert thinned((), 0) == ()
    assert len(thinned(tuple(range(100_000)), 64)) == 1024 * 64 // PREFIX_TOKENS


def test_an_offer_is_kept_whole():
    """Whatever is added to an offer is recorded with it, but for bookkeeping between passes."""
    assert {"replica", "open", "free_blocks", "due_s", "price_factor", "known_free_tokens"} <= set(OFFER_FIELDS)
    assert not {"epoch", "wanted_due_s", "forecast"} & set(OFFER_FIELDS)
