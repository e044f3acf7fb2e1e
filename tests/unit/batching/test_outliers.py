"""Who may be taken out of service on a doubt: never the last of a model, never more than half."""

from hypothesis import given
from hypothesis import strategies as st

from batching.outliers import Standing, may_go, needed
from batching.replica import Lifecycle
from batching.request import ReplicaId

FLEETS = st.lists(
    st.tuples(st.frozensets(st.sampled_from("mno"), min_size=1), st.sampled_from([Lifecycle.READY, Lifecycle.DOWN])),
    min_size=1,
    max_size=8,
)


@given(fleet=FLEETS, doubts=st.lists(st.integers(0, 7), max_size=20))
def test_the_floor_holds(fleet: list[tuple[frozenset[str], Lifecycle]], doubts: list[int]) -> None:
    """Whoever is doubted in whatever order: every model that had a ready replica keeps one, and half of its replicas."""
    standings = {
        ReplicaId(str(n)): Standing(models, lifecycle, doubted=False) for n, (models, lifecycle) in enumerate(fleet)
    }
    served = {model for models, lifecycle in fleet for model in models if lifecycle is Lifecycle.READY}
    for number in doubts:
        replica = ReplicaId(str(number % len(fleet)))
        before = standings[replica]
        if before.lifecycle is Lifecycle.READY and may_go(replica, standings):
            standings[replica] = Standing(before.models, Lifecycle.SUSPECT, doubted=True)
    for model in served:
        serving = [standing for standing in standings.values() if model in standing.models]
        assert any(standing.lifecycle is Lifecycle.READY for standing in serving)
        assert 2 * sum(standing.doubted for standing in serving) <= len(serving)


def test_half_of_four_may_go() -> None:
    """Two, not three."""
    standings = {ReplicaId(name): Standing(("m",), Lifecycle.READY, doubted=False) for name in "abcd"}
    for name in "ab":
        assert may_go(ReplicaId(name), standings)
        standings[ReplicaId(name)] = Standing(("m",), Lifecycle.DOWN, doubted=True)
    assert not may_go(ReplicaId("c"), standings)


def test_needed_where_no_other_is_ready() -> None:
    """Of any of its models."""
    standings = {
        ReplicaId("a"): Standing(("m", "n"), Lifecycle.SUSPECT, doubted=True),
        ReplicaId("b"): Standing(("m",), Lifecycle.READY, doubted=False),
    }
    assert needed(ReplicaId("a"), standings)
    assert not needed(ReplicaId("a"), {**standings, ReplicaId("c"): Standing(("n",), Lifecycle.READY, doubted=False)})
    assert needed(ReplicaId("a"), {**standings, ReplicaId("c"): Standing(("n",), Lifecycle.WARMING, doubted=False)})
