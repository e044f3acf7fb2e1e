"""W3C Trace Context: what is well-formed is understood and passed on, everything else counts as not sent."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.tracing.context import Parent, parent_of, state_of, traceparent

GOOD = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TRACE, SPAN = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331


@pytest.mark.parametrize(
    ("text", "sampled"),
    [
        (GOOD, True),
        (GOOD[:-2] + "00", False),
        (GOOD[:-2] + "03", True),  # other flags are not ours
        (GOOD[:-2] + "02", False),
        ("cc" + GOOD[2:], True),  # a version to come, read as far as it is known
        ("cc" + GOOD[2:] + "-what.the-future-brings", True),
        (f" {GOOD} ", True),
    ],
)
def test_a_parent_is_read(text: str, sampled: bool) -> None:
    """Ids and the sampled flag, of this version and of later ones."""
    assert parent_of({"traceparent": text}) == Parent(TRACE, SPAN, sampled=sampled, state="")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00-1-2-01",
        GOOD.upper(),
        "ff" + GOOD[2:],
        GOOD + "-more",  # which version 00 does not have
        GOOD[:-1],
        GOOD.replace("b7ad6b7169203331", "0" * 16),
        GOOD.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        "cc" + GOOD[2:] + "x" * 300,
        GOOD + "\n",
    ],
)
def test_a_malformed_parent_is_none(text: str) -> None:
    """Wrong lengths, digits, versions, or ids of zeros; its state goes with it."""
    found = parent_of({"traceparent": text, "tracestate": "a=1"})
    assert found is None or text.strip() == GOOD


@pytest.mark.parametrize(
    ("text", "state"),
    [
        ("a=1,b=2", "a=1,b=2"),
        (" a=1 ,, b=x y\t", "a=1,b=x y"),
        ("t61rcwkgmze@vendor=1", "t61rcwkgmze@vendor=1"),
        ("A=1", ""),
        ("a=1,a=2", ""),
        ("a", ""),
        ("a=1=2", ""),
        ("a=\x7f", ""),
        (",".join(f"k{n}=1" for n in range(33)), ""),
        (",".join(f"k{n}={'v' * 200}" for n in range(4)), f"k0={'v' * 200},k1={'v' * 200}"),
    ],
)
def test_state_is_passed_on_or_left(text: str, state: str) -> None:
    """Whole members, the first ones where there is too much; nothing where one is malformed."""
    assert state_of(text) == state


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.booleans())
def test_what_we_say_is_understood(trace_id: int, span_id: int, sampled: bool) -> None:
    """`traceparent` and `parent_of` are each other's inverse."""
    assert parent_of({"traceparent": traceparent(trace_id, span_id, sampled=sampled)}) == Parent(
        trace_id, span_id, sampled=sampled, state=""
    )


@example("a=1,b=" + "x" * 257)
@given(
    st.text(max_size=80) | st.lists(st.from_regex(r"[a-z@]{1,3}=[ -~]{0,6}", fullmatch=True), max_size=40).map(",".join)
)
def test_no_state_can_carry_more_than_it_may(text: str) -> None:
    """Whatever a client sends: printable ASCII, at most 512 characters and 32 members, and stable when it is read again."""
    state = state_of(text)
    assert len(state) <= 512
    assert state.count(",") < 32
    assert state == "" or (state.isascii() and state.isprintable())
    assert state_of(state) == state
