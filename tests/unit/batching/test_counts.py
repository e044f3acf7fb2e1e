"""What a replica's ledger has counted ever: the figures that rates are differences of, and the queue by tenant."""

from hypothesis import given
from hypothesis import strategies as st

from batching.ledger import Counts
from batching.request import Outcome, ReplicaId
from tests.support.scheduling import leases, profile, request, scheduler

A = ReplicaId("a")


def test_output_counts_while_it_flows_and_prompts_once_computed():
    """A stream's tokens count as they are told, its prompt at its first token, and its end takes nothing back."""
    built = scheduler(profile())
    built.submit(request(prompt_tokens=100), 0.0)
    (lease,) = leases(built.advance(0.0))
    assert built.counts()[A] == Counts(0, 0, 7)
    built.on_first_token(lease.id, 0.1)
    built.on_tokens(lease.id, 20, 0.5)
    assert built.counts()[A] == Counts(20, 100, 8)
    built.finish(lease.id, 1.0, outcome=Outcome.COMPLETED, output_tokens=23)
    assert built.counts()[A] == Counts(23, 100, 0)
    built.finish(lease.id, 1.0, outcome=Outcome.COMPLETED, output_tokens=23)
    assert built.counts()[A] == Counts(23, 100, 0)


def test_an_answer_that_came_at_once_counts_whole():
    """Nobody told of its tokens before its end; and of one that was broken off, what was told."""
    built = scheduler(profile())
    for name in ("whole", "broken"):
        built.submit(request(name, streaming=False), 0.0)
    whole, broken = leases(built.advance(0.0))
    built.finish(whole.id, 1.0, outcome=Outcome.COMPLETED, prompt_tokens=100, output_tokens=40)
    assert built.counts()[A][:2] == (40, 100)
    built.on_tokens(broken.id, 5, 1.0)
    built.finish(broken.id, 2.0, outcome=Outcome.CANCELLED)
    assert built.counts()[A][:2] == (45, 100)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60), st.booleans()), max_size=8))
def test_counts_are_the_sum_of_what_each_emitted(answers: list[tuple[int, int, bool]]):
    """Of every answer the most that anybody said of it: told while it ran, or reported at its end."""
    built = scheduler(profile())
    for number, _ in enumerate(answers):
        built.submit(request(str(number)), 0.0)
    placed = leases(built.advance(0.0))
    assert len(placed) == len(answers)
    expected = 0
    for lease, (told, reported, completes) in zip(placed, answers, strict=True):
        built.on_first_token(lease.id, 1.0)
        built.on_tokens(lease.id, told, 1.0)
        expected += max(told, reported) if completes else told
        outcome = Outcome.COMPLETED if completes else Outcome.FAILED
        built.finish(lease.id, 2.0, outcome=outcome, output_tokens=reported)
        built.check()
    assert built.counts()[A] == Counts(expected, 100 * len(answers), 0)


def test_the_queue_is_told_by_tenant():
    """Depth, tokens and age of each; together they are what is told without tenants; who has been placed is not in it."""
    built = scheduler(profile(max_num_seqs=1))
    for number, tenant in enumerate(("big", "big", "small", "big")):
        built.submit(request(str(number), tenant=tenant, prompt_tokens=100 + number), float(number))
        built.advance(float(number))
    rows = {row.tenant: row for row in built.queue_statistics(5.0, by_tenant=True)}
    assert {name: (row.depth, row.tokens, row.oldest_age_s) for name, row in rows.items()} == {
        "big": (2, 204, 4.0),
        "small": (1, 102, 3.0),
    }
    (whole,) = built.queue_statistics(5.0)
    assert (whole.depth, whole.tokens, whole.oldest_age_s) == (3, 306, 4.0)
