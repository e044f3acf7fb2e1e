"""One tenant's limits, alone in its gateway: reserved at arrival, settled at the end, exactly once."""

from datetime import UTC, datetime
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.tenants import Limits
from router.tenants.account import Account, Bound, Hold, Refusal, own_account

WALL = datetime(2026, 11, 30, 23, 59, tzinfo=UTC)


def entered(account: Account, tokens: int = 100, now: float = 0.0, wall: datetime = WALL) -> Hold:
    hold = account.enter(tokens, now, wall)
    assert isinstance(hold, Hold)
    return hold


def refused(account: Account, tokens: int = 100, now: float = 0.0, wall: datetime = WALL) -> Refusal:
    refusal = account.enter(tokens, now, wall)
    assert isinstance(refusal, Refusal)
    return refusal


def test_tokens_are_reserved_before_they_are_used():
    """Two requests that fit one by one and not together: the second is refused while the first runs (check-then-act lets both in)."""
    account = own_account(Limits(tokens_per_minute=150))
    first = entered(account)
    refusal = refused(account)
    assert (refusal.bound, refusal.left) == (Bound.TOKENS, 50)
    account.settle(first, 1.0, WALL, tokens=20, usd=None)
    entered(account, now=1.0)


def test_settling_twice_gives_back_once():
    """However often an end is told, places and tokens come back once."""
    account = own_account(Limits(tokens_per_minute=200, concurrency=1))
    hold = entered(account)
    for _ in range(3):
        account.settle(hold, 1.0, WALL, tokens=0, usd=None)
    entered(account, now=1.0)
    assert refused(account, now=1.0).bound is Bound.CONCURRENCY


def test_more_than_reserved_counts():
    """An answer that was longer than forecast is charged in full."""
    account = own_account(Limits(tokens_per_minute=200))
    account.settle(entered(account), 1.0, WALL, tokens=180, usd=None)
    assert refused(account, 30, now=1.0).left == 20


def test_what_was_never_served_counts_for_nothing():
    """A request that the gateway gave up takes neither a request nor tokens; one that its client left takes a request."""
    account = own_account(Limits(requests_per_minute=1, tokens_per_minute=100))
    account.settle(entered(account), 1.0, WALL, tokens=None, usd=None)
    account.settle(entered(account, now=1.0), 2.0, WALL, tokens=0, usd=None)
    assert refused(account, 1, now=2.0).bound is Bound.REQUESTS
    assert account.standings(2.0)["tokens"].left == 100


def test_what_can_never_fit_is_told_so():
    """More tokens than the limit of a minute: no wait helps."""
    refusal = refused(own_account(Limits(tokens_per_minute=99)))
    assert (refusal.bound, refusal.wait_s) == (Bound.TOO_LARGE, inf)


def test_a_refusal_takes_nothing():
    """A request refused for its tokens has not used up a request."""
    account = own_account(Limits(requests_per_minute=2, tokens_per_minute=100))
    entered(account)
    for _ in range(10):
        assert refused(account).bound is Bound.TOKENS
    assert account.standings(0.0)["requests"].left == 1


def test_dollars_are_of_the_month():
    """Once they are spent, nothing more begins until the month ends, by UTC."""
    account = own_account(Limits(usd_per_month=1.0))
    account.settle(entered(account), 1.0, WALL, tokens=5, usd=1.5)
    assert (refused(account).bound, refused(account).wait_s) == (Bound.USD, inf)
    entered(account, wall=datetime(2026, 12, 1, tzinfo=UTC))


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.integers(1, 60), st.one_of(st.none(), st.integers(0, 90)), st.integers(0, 5)),
        max_size=60,
    )
)
def test_whatever_happens_the_books_balance(steps: list[tuple[float, int, int | None, int]]):
    """Any order of arrivals and ends: places are never negative nor above the limit, and all come back."""
    account = own_account(Limits(requests_per_minute=20, tokens_per_minute=300, concurrency=4))
    now, running = 0.0, []
    for pause_s, tokens, used, which in steps:
        now += pause_s
        outcome = account.enter(tokens, now, WALL)
        if isinstance(outcome, Hold):
            running.append((outcome, used))
        assert len(running) <= 4
        if running and which < len(running):
            hold, told = running.pop(which)
            account.settle(hold, now, WALL, tokens=told, usd=None)
    for hold, told in running:
        account.settle(hold, now, WALL, tokens=told, usd=None)
    assert account.out == 0
    later = now + 120
    assert account.standings(later)["tokens"].left == 300
    assert account.standings(later)["requests"].left == 20
    for _ in range(4):
        entered(account, 1, later)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0004, "0s"),
        (0.012, "12ms"),
        (1.5, "1.5s"),
        (59.999, "59.999s"),
        (360, "6m0s"),
        (3661.5, "1h1m1.5s"),
    ],
)
def test_spans_are_shown_as_go_does(seconds: float, text: str):
    """OpenAI's x-ratelimit-reset headers are Go's durations."""
    from router.tenants.durations import shown

    assert shown(seconds) == text


def test_other_limits_keep_what_is_used():
    """A reload changes limits; who has used the minute up, or has requests under way, does not begin anew."""
    account = own_account(Limits(requests_per_minute=2, concurrency=1, tokens_per_minute=1000))
    hold = entered(account)
    larger = own_account(Limits(requests_per_minute=3, concurrency=2, usd_per_month=1.0), account)
    assert larger.standings(0.0)["requests"].left == 2
    entered(larger)
    assert refused(larger).bound is Bound.CONCURRENCY
    account.settle(hold, 1.0, WALL, tokens=5, usd=None)
    entered(larger, now=1.0)
    assert refused(larger, now=1.0).bound is Bound.REQUESTS
