"""The parts of several workers together: what adds up, what does not, and what stays bounded."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from router.board.document import QueueRow
from router.board.part import MOST_ROWS, OTHERS, Held, Part, rows_together, together
from router.board.pulse import Second
from tests.support.board_documents import line


def row(tenant: str, depth: int = 1, **changes: object) -> QueueRow:
    values = {"model": "m", "service_tier": "default", "tenant": tenant, "depth": depth, "tokens": 10, "oldest_s": 1.0}
    return QueueRow(**{**values, **changes})  # type: ignore[arg-type]


def test_parts_add_up():
    """Sequences, blocks and tokens a second are sums; foreign blocks, which each sees alike, are not; the worst circuit shows."""
    one = Part(
        50.0, held={"a": Held(2, 20, 30, 5, 10.0, 3.0), "b": Held(1)}, queue=(row("t-1", 2, oldest_s=4.0),),
        seconds=(Second(7, output_tokens=10),), placements=(line("r1", 1.0),),
    )  # fmt: skip
    other = Part(
        40.0, draining=True, held={"a": Held(3, 30, 40, 6, 0.5, 0.0, "open")}, queue=(row("t-1"), row("t-2")),
        seconds=(Second(7, output_tokens=5), Second(8)), placements=(line("r2", 2.0),),
    )  # fmt: skip
    whole = together([one, other])
    assert whole.held == {"a": Held(5, 50, 70, 6, 10.5, 3.0, "open"), "b": Held(1)}
    assert whole.queue == (row("t-1", 3, tokens=20, oldest_s=4.0), row("t-2"))
    assert whole.seconds == [Second(7, output_tokens=15), Second(8)]
    assert [placed.request_id for placed in whole.placements] == ["r2", "r1"]
    assert (whole.workers, whole.started_unix_s, whole.draining) == (2, 40.0, True)
    assert together([other, one]) == whole


def test_a_part_travels():
    """As the workers send it."""
    part = Part(1.0, held={"a": Held(1)}, queue=(row("t-1"),), seconds=(Second(1),), placements=(line(),))
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(part), type=Part) == part


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 9)), max_size=600))
def test_rows_are_bounded_and_none_is_lost(told: list[tuple[int, int]]):
    """However many tenants wait: the longest are told one by one, all others as one, the sum stays."""
    rows = rows_together(row(f"t-{number}", depth) for number, depth in told)
    assert len(rows) <= MOST_ROWS + 1
    assert sum(one.depth for one in rows) == sum(depth for _, depth in told)
    assert sum(one.tokens for one in rows) == 10 * len(told)
    named = [one.depth for one in rows if one.tenant != OTHERS]
    assert named == sorted(named, reverse=True)
    if len({number for number, _ in told}) <= MOST_ROWS:
        assert OTHERS not in {one.tenant for one in rows}
