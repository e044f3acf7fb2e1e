"""The service gap of tenants: its pieces against values worked out by hand."""

import numpy as np
import pytest

from benchmarks.mixes import Ended
from benchmarks.service import Curve, backlog, bound, most_running_tokens, service, service_gap
from router.simulation.run import Life
from router.simulation.trace import Call


def ended(
    arrival: float,
    placed: float | None,
    first: float | None = None,
    last: float = 0.0,
    *,
    end: float = 0.0,
    prompt: int = 100,
    output: int = 0,
) -> Ended:
    life = Life(arrival, placed_s=placed, first_s=first, last_s=last, tokens=output)
    return Ended(Call(arrival_s=arrival, prompt_tokens=prompt, output_tokens=max(1, output)), life, end or last)


def test_a_curve_jumps_and_ramps():
    """A jump counts from its moment on, a ramp evenly between its ends, and both stay."""
    curve = Curve([(1.0, 10.0)], [(2.0, 4.0, 6.0)])
    assert curve.at(np.array([0.9, 1.0, 2.0, 3.0, 4.0, 9.0])) == pytest.approx([0, 10, 10, 13, 16, 16])


def test_service_weighs_output_double():
    """100 prompt tokens when placed, then 20 output tokens that count 2 each, half of them at half time."""
    curve = service([ended(0.0, 1.0, 2.0, 4.0, output=20)])
    assert curve.at(np.array([0.5, 1.0, 3.0, 4.0])) == pytest.approx([0, 100, 120, 140])


def test_an_answer_of_one_token_counts_at_once():
    """It has no length to spread over."""
    assert service([ended(0.0, 1.0, 2.0, 2.0, output=1)]).at(np.array([2.0])) == pytest.approx([102])


def test_what_was_never_placed_was_not_served():
    """A request that gave up waiting is backlog and no service."""
    gone = ended(0.0, None, end=5.0)
    assert backlog([gone]) == [(0.0, 5.0)]
    assert service([gone]).at(np.array([9.0])) == pytest.approx([0])


def test_backlog_is_the_union_of_waits():
    """Waits that touch are one; a request placed as it came waited for nothing."""
    waits = [ended(0.0, 2.0), ended(1.0, 3.0), ended(3.0, 4.0), ended(6.0, 7.0), ended(9.0, 9.0)]
    assert backlog(waits) == [(0.0, 4.0), (6.0, 7.0)]


def test_the_gap_is_taken_only_where_both_wait():
    """From 2 to 6 both wait: A is served 300 more tokens, then B 100. What A got before does not count."""
    a = [ended(0.0, 1.0, prompt=5000), ended(0.0, 3.0, prompt=300), ended(0.0, 6.0, prompt=7)]
    b = [ended(2.0, 5.0, prompt=100), ended(2.0, 8.0, prompt=9)]
    assert service_gap([a, b]) == pytest.approx(300)


def test_the_gap_counts_output_that_comes_meanwhile():
    """B waits and gets nothing while a request of A that was placed before streams 50 tokens of weight 2."""
    a = [ended(0.0, 0.0, 1.0, 6.0, prompt=10, output=50), ended(0.5, 7.0, prompt=1)]
    b = [ended(0.5, 6.5, prompt=1)]
    assert service_gap([a, b]) == pytest.approx(100)


def test_without_common_backlog_there_is_no_gap():
    """Nothing is promised to who does not wait."""
    assert service_gap([[ended(0.0, 1.0)], [ended(1.0, 2.0)]]) is None


def test_the_bound_goes_by_what_ran_at_one_time():
    """Two requests overlap with 100 + 100 prompt tokens and 10 of output; twice the output weight times that is the bound."""
    both = [
        ended(0.0, 0.0, 1.0, 2.0, output=10),
        ended(0.0, 1.5, 1.9, 3.0, output=1),
        ended(0.0, 5.0, 6.0, 7.0, output=3),
    ]
    assert most_running_tokens(both) == pytest.approx(100 + 10 + 100 + 0.1 / 1.1, abs=1e-3)
    assert bound(both) == pytest.approx(2 * 2 * most_running_tokens(both))


def test_the_bound_is_never_less_than_two_of_the_longest_prompts():
    """Where little runs together a single prompt decides."""
    assert bound([ended(0.0, None, end=1.0, prompt=900)]) == 1800
