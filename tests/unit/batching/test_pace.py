"""The streams' credit: a heap of constants against a naive sum for every stream."""

from dataclasses import dataclass
from itertools import pairwise
from math import inf
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching.ledger import LeaseRecord
from batching.pace import _LENT_TOKENS, _LOST_TOKENS, Pace
from batching.request import ReplicaId
from batching.ticket import Lease, LeaseId
from tests.support.scheduling import request

OBJECTIVE_S, GAIN_S = 0.1, 0.09
LENT_S = _LENT_TOKENS * GAIN_S  # to the grown


def record(number: int, sequences: int = 1):
    lease = Lease(id=LeaseId(number), replica=ReplicaId("a"), request=request(sequences=sequences))
    return LeaseRecord(
        lease=lease,
        placed_s=0.0,
        rank=1,
        block_size=16,
        prefill_tokens=0,
        believed_cached_tokens=0,
        forecast_tokens=60,
        ttft_s=0.0,
        tpot_s=0.0,
    )


def begin(pace: Pace, number: int, now: float, *, least_tokens: int = _LENT_TOKENS + 1):
    begun = record(number)
    begun.first_token_s, begun.emitted_tokens = now, 1
    pace.begin(begun, now, least_tokens=least_tokens)
    return begun


@dataclass
class Naive:
    """One stream's credit by its definition."""

    begun: LeaseRecord
    first_s: float
    steps_before: int
    least: int

    def due_s(self, steps: int):
        got = steps - self.steps_before
        loan = max(self.least - 1, 0) - got  # tokens whose gain it is lent
        return self.first_s + OBJECTIVE_S * got + GAIN_S * (max(loan, _LENT_TOKENS) if got else loan)


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("begin"), st.integers(0, 40)),
        st.tuples(st.just("advance"), st.integers(0, 60), st.integers(0, 9)),
        st.tuples(st.just("end"), st.integers(0, 9)),
        st.tuples(st.just("elapse"), st.sampled_from((0.01, 0.3, 1.0, 4.0))),
    ),
    max_size=60,
)


@settings(deadline=None)
@given(OPERATIONS)
def test_the_least_credit_is_that_of_a_naive_minimum(operations: list[Any]):
    """However streams begin, get tokens and end, `due_s` is the least over all that are not too far behind."""
    pace, streams, now, steps = Pace(OBJECTIVE_S, GAIN_S), list[Naive](), 0.0, 0
    for number, (name, *values) in enumerate(operations):
        if name == "begin":
            streams.append(Naive(begin(pace, number, now, least_tokens=values[0]), now, steps, values[0]))
        elif name == "elapse":
            now += values[0]
        elif streams:
            stream = streams[values[-1] % len(streams)]
            if name == "end":
                pace.end(stream.begun)
                streams.remove(stream)
            else:
                stream.begun.emitted_tokens += values[0]
                reached = stream.steps_before + stream.begun.emitted_tokens - 1
                assert pace.advance(stream.begun) == (reached > steps)
                steps = max(steps, reached)
        streams = [s for s in streams if s.due_s(steps) >= now - GAIN_S * _LOST_TOKENS]
        expected = min((s.due_s(steps) for s in streams), default=inf)
        assert pace.due_s(now) == pytest.approx(expected)
        assert pace.steps == steps


def test_a_young_stream_is_lent_what_it_will_gain():
    """Before its second token a stream of an answer that reaches 20 tokens may be held up by the gain of the 19 others."""
    pace = Pace(OBJECTIVE_S, GAIN_S)
    begin(pace, 1, 5.0, least_tokens=20)
    assert pace.due_s(5.0) == pytest.approx(5.0 + 19 * GAIN_S)


def test_answers_of_a_few_tokens_are_lent_what_those_gain():
    """Where one in a hundred answers has but three tokens, no prompt may hold them up by more than two gains as they begin."""
    pace = Pace(OBJECTIVE_S, GAIN_S)
    stream = begin(pace, 1, 5.0, least_tokens=3)
    assert pace.due_s(5.0) == pytest.approx(5.0 + 2 * GAIN_S)
    stream.emitted_tokens = 2
    pace.advance(stream)
    assert pace.due_s(5.1) == pytest.approx(5.0 + OBJECTIVE_S + LENT_S)


def test_a_prompt_ahead_is_a_stream_to_come():
    """What is admitted behind it would hold it up as it begins; what is prefilled before that does not."""
    pace = Pace(OBJECTIVE_S, GAIN_S)
    first, second = record(1), record(2)
    pace.expect(first, 2.0, least_tokens=16)
    pace.expect(second, 2.5, least_tokens=16)
    assert pace.due_s(1.0) == inf  # it has no token yet
    assert pace.coming_due_s(1.0, 1.0) == pytest.approx(2.0 + LENT_S)
    assert pace.coming_due_s(1.0, 0.25) == pytest.approx(1.25 + LENT_S)  # tokens are given while it waits
    pace.begin(first, 2.0, least_tokens=16)
    assert pace.coming_due_s(2.0, 1.0) == pytest.approx(2.5 + LENT_S)
    pace.end(second)
    assert pace.coming_due_s(2.0, 1.0) == inf


def test_a_stream_that_does_not_come_when_expected_binds_nobody():
    """The prediction was wrong; the next one's still counts."""
    pace = Pace(OBJECTIVE_S, GAIN_S)
    pace.expect(record(1), 2.0, least_tokens=3)
    pace.expect(record(2), 9.0, least_tokens=3)
    assert pace.coming_due_s(2.0 + 2 * GAIN_S, 1.0) == pytest.approx(2.0 + 2 * GAIN_S)
    assert pace.coming_due_s(2.1 + 2 * GAIN_S, 1.0) == pytest.approx(9.0 + 2 * GAIN_S)
    assert pace.coming_due_s(10.0, 1.0) == inf


def test_the_loan_melts_to_what_the_grown_are_allowed():
    """Each token earns the objective and melts one gain of the loan, until what the grown are lent is left: then only the first."""
    pace = Pace(OBJECTIVE_S, GAIN_S)
    stream = begin(pace, 1, 0.0, least_tokens=20)
    due = [pace.due_s(0.0)]
    for _ in range(30):
        stream.emitted_tokens += 1
        pace.advance(stream)
        due.append(pace.due_s(0.0))
    steps = [after - before for before, after in pairwise(due)]
    melting = 19 - _LENT_TOKENS
    assert steps == pytest.approx([OBJECTIVE_S - GAIN_S] * melting + [OBJECTIVE_S] * (30 - melting))
    assert due[-1] == pytest.approx(30 * OBJECTIVE_S + LENT_S)


def test_a_stream_too_far_behind_is_let_go_for_good():
    """One that is behind by more than the gain of so many tokens binds nobody any more, not even when it catches up."""
    pace = Pace(OBJECTIVE_S, GAIN_S)
    stream = begin(pace, 1, 0.0)
    lost_s = LENT_S + _LOST_TOKENS * GAIN_S
    assert pace.due_s(lost_s - 0.01) < inf
    assert pace.due_s(lost_s + 0.01) == inf
    stream.emitted_tokens = 500
    assert pace.advance(stream)
    assert pace.due_s(lost_s + 0.01) == inf
    begin(pace, 2, lost_s)
    assert pace.due_s(lost_s) == pytest.approx(lost_s + LENT_S)


def test_all_streams_share_the_steps():
    """A token of one is a step for all: who reports seldom is not thought behind."""
    pace = Pace(OBJECTIVE_S, GAIN_S)
    begin(pace, 1, 0.0)
    other = begin(pace, 2, 0.0)
    other.emitted_tokens = 101
    pace.advance(other)
    assert pace.due_s(0.0) == pytest.approx(100 * OBJECTIVE_S + LENT_S)
    pace.end(other)
    assert pace.due_s(0.0) == pytest.approx(100 * OBJECTIVE_S + LENT_S)


def test_ending_twice_or_unbegun_changes_nothing():
    """A request whose first token nobody saw has no stream to end."""
    pace = Pace(OBJECTIVE_S, GAIN_S)
    stream = begin(pace, 1, 0.0)
    pace.end(record(2))
    assert pace.due_s(0.0) < inf
    pace.end(stream)
    pace.end(stream)
    assert pace.due_s(0.0) == inf


def test_an_objective_below_the_machines_own_pace_binds_as_soon_as_it_may():
    """Streams of a machine slower than its objective gain nothing by a token and are lent nothing."""
    pace = Pace(0.05, -0.02)
    begin(pace, 1, 1.0, least_tokens=20)
    assert pace.due_s(1.0) == 1.0
    assert pace.due_s(1.001) == inf
