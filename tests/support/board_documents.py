"""Documents of the board for tests: small, and whole ones at random."""

from typing import Any

from hypothesis import strategies as st

from router.board.changes import latest_placements, latest_pulses
from router.board.document import Candidate, Live, Money, PlacementLine, Pulse, QueueRow, ReplicaCard


def card(name: str = "a", **changes: Any) -> ReplicaCard:
    values: dict[str, Any] = {
        "name": name, "models": ("m",), "backend": "vllm", "gpu": "H100-80G", "gpus": 1, "cost_tier": "spot",
        "usd_per_hour": 2.0, "lifecycle": "ready", "running": 0,
    }  # fmt: skip
    return ReplicaCard(**{**values, **changes})


def line(name: str = "r", unix_s: float = 100.0, **changes: Any) -> PlacementLine:
    values: dict[str, Any] = {
        "request_id": name, "unix_s": unix_s, "model": "m", "service_tier": "default", "replica": "a", "cost_tier": "spot",
        "reason": "cost", "formula": "a [spot] by cost: cheapest", "queued_s": 0.0,
    }  # fmt: skip
    return PlacementLine(**{**values, **changes})


def live(*cards: ReplicaCard, **changes: Any) -> Live:
    values: dict[str, Any] = {"whole": True, "unix_s": 100.0, "started_unix_s": 90.0, "penstock": "test"}
    return Live(replicas=cards, **{**values, **changes})


_NAMES = st.lists(st.sampled_from("abcdef"), unique=True, max_size=6)
_LINES = st.builds(
    line,
    st.sampled_from(("r1", "r2", "r3")),
    st.sampled_from((1.0, 2.0, 3.0)),
    outcome=st.sampled_from((None, "completed")),
    candidates=st.just((Candidate(replica="a", usd=0.1, ttft_s=0.1, tpot_s=0.01, cached_tokens=0, headroom_blocks=None, meets=True),)),
)  # fmt: skip
_ROWS = st.builds(
    QueueRow,
    model=st.just("m"),
    service_tier=st.just("flex"),
    tenant=st.sampled_from(("t-1", "t-2")),
    depth=st.integers(1, 3),
    tokens=st.just(10),
    oldest_s=st.just(1.0),
)


@st.composite
def lives(draw: st.DrawFn) -> Live:
    """Any whole document, its order and its figures at random."""
    cards = [card(name, running=draw(st.integers(0, 1))) for name in draw(_NAMES)]
    seconds = sorted(draw(st.sets(st.integers(1, 140), max_size=8)))
    pulses = latest_pulses(tuple(Pulse(unix_s=float(at), output_tokens=draw(st.integers(0, 1))) for at in seconds))
    return live(
        *cards,
        unix_s=float(draw(st.integers(0, 5))),
        draining=draw(st.booleans()),
        workers=draw(st.integers(1, 2)),
        queue=tuple(draw(st.lists(_ROWS, max_size=2))),
        pulses=pulses,
        money=Money(usd_per_hour=float(len(cards))),
        placements=latest_placements(tuple(draw(st.lists(_LINES, max_size=6)))),
    )
