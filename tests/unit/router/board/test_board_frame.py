"""A frame of `penstock top`: it fits the terminal, says what the document says, and is safe to print."""

import io
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from router.board.document import Live, Money, Pulse, QueueRow, ReplicaCard
from router.board.frame import View, frame
from router.board.replica_table import bar, ordered
from router.board.words import clean, duration, span
from tests.support.board_documents import card, line, live, lives

FLEET = (
    card("h100-reserved", cost_tier="reserved", usd_per_hour=2.5, kv_blocks=1000, held_blocks=200, reserved_blocks=400,
         foreign_blocks=100, running=40, max_num_seqs=256, output_tokens_per_s=4200.0, usd_per_million_output_tokens=0.17),
    card("a100-spot", usd_per_hour=1.2, kv_blocks=1000, held_blocks=900, reserved_blocks=900, running=7, lifecycle="reclaiming",
         reason="reclaim", deadline_unix_s=141.0, circuit="half_open"),
    card("l4-on-demand", cost_tier="on_demand", usd_per_hour=0.8, lifecycle="down", why="no answer to a probe"),
)  # fmt: skip


def document(**changes: Any) -> Live:
    pulses = tuple(Pulse(unix_s=float(at), output_tokens=100 * at, ttft_p50_s=0.02, ttft_p95_s=0.3, itl_p50_s=0.008, itl_p95_s=0.02,
                         requests=2, errors=at == 7) for at in range(10))  # fmt: skip
    values: dict[str, Any] = {
        "pulses": pulses,
        "money": Money(usd_per_hour=4.5, on_demand_usd_per_hour=9.0, busy_usd_per_hour=3.7, usd_per_million_output_tokens=1.25),
        "queue": (QueueRow(model="m", service_tier="flex", tenant="t-1", depth=3, tokens=900, oldest_s=2.5),),
        "placements": (
            line("story-1", 95.0, replica="a100-spot", ttft_s=0.05, outcome="completed", queued_s=0.2,
                 formula="a100-spot [spot] by cost: ttft 0.040s tpot 8.0ms $1.00e-6 for 0.1 machine-s cached 0 headroom 90 objective met (3 candidates)"),
            line("story-2", 94.0, outcome="failed"),
        ),
    }  # fmt: skip
    return live(*changes.pop("replicas", FLEET), **{**values, **changes})


def printed(document: Live, width: int = 80, **view: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(frame(document, View(width=width, **view)))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 140])
def test_a_frame_answers_the_three_questions(width: int):
    """Which replica is the cheapest, which the fullest, and why the last request went where it went."""
    text = printed(document(), width)
    for said in (
        "2.50", "1.20", "0.80", "50%", "90%", "reclaiming 41 s", "down", "spot", "reserved", "demand",
        "$4.50/h", "all on demand $9.00/h (-50%)", "busy $3.70/h", "$1.25/Mtok", "900 tok/s", "TTFT p50 20 ms  p95 300 ms",
        "ITL p50 8.0 ms  p95 20 ms", "queue 3", "1 failed", "1 of 3 replicas ready", "flex", "t-1", "2.5 s",
        "5 s ago  story-1  m  -> a100-spot by cost  completed  queued 200 ms", "failed",
    ):  # fmt: skip
        assert said in text, said
    assert "expected ttft 0.040s tpot 8.0ms $1.00e-6" in text
    assert "objective met" in " ".join(text.split())
    assert ("reclaiming 41 s circuit half open" if width == 140 else "reclaiming 41 s half open") in text
    assert ("no answer to a probe" in text) == (width == 140)
    assert ("$0.17" in text) == (width == 140)


@settings(max_examples=30)
@given(lives(), st.sampled_from((80, 100, 110, 140, 200)), st.integers(24, 60))
def test_a_frame_fits_the_terminal(shown: Live, width: int, height: int):
    """No line is wider, and none more than the screen has."""
    lines = printed(shown, width, height=height, footer="q quits").rstrip("\n").split("\n")
    assert max(map(len, lines)) <= width
    assert len(lines) <= height


def test_a_thousand_replicas_fit_a_screen_and_print_whole():
    """On a screen the first by the order that was asked for, and how many there are besides; printed once, all."""
    many = document(replicas=tuple(card(f"r{number:04}", usd_per_hour=float(number)) for number in range(1000)))
    screen = printed(many, height=30, sort="price")
    assert len(screen.rstrip("\n").split("\n")) <= 30
    assert "r0000" in screen
    assert "more, further down by price" in screen
    assert "r0999" in printed(many)


def test_replicas_are_ordered():
    """The fullest, the cheapest, the busiest first; one whose KV cache is unknown is not full."""
    orders = {"name": "ahl", "kv": "ahl", "price": "lah", "tokens": "hal"}
    for sort, wanted in orders.items():
        assert "".join(card.name[0] for card in ordered(FLEET, sort)) == wanted  # type: ignore[arg-type]


BLOCKS = st.integers(0, 1200)


@given(st.one_of(st.none(), st.integers(1, 1000)), BLOCKS, BLOCKS, BLOCKS, st.integers(8, 40), st.booleans())
def test_a_bar_is_as_wide_as_it_should_be(
    blocks: int | None, held: int, grows: int, foreign: int, width: int, ascii_only: bool
):
    """Whatever the ledger says, more than there is included; what is held is seen, however little."""
    shown = card(kv_blocks=blocks, held_blocks=held, reserved_blocks=held + grows, foreign_blocks=foreign)
    text = bar(shown, width, ascii_only=ascii_only).plain
    if blocks is None:
        assert text in "size unknown"
        return
    assert len(text) == width
    assert text.isascii() == ascii_only
    assert (text[0] in "#█") == (held > 0)
    if round(width * (held + grows + foreign) / blocks) >= width:
        assert text[-1] not in ".·"


def test_a_bar_tells_its_parts_apart():
    """Held, others', expected growth, free: by shape, as colour may be off."""
    shown = card(kv_blocks=100, held_blocks=20, reserved_blocks=50, foreign_blocks=10)
    assert bar(shown, 10).plain == "██▓░░░····"
    assert bar(shown, 10, ascii_only=True).plain == "##+---...."


def test_what_clients_chose_cannot_move_the_cursor():
    """A request id with escape sequences is shown without them; markup is text."""
    shown = document(placements=(line("\x1b[2Jevil\r[bold]x[/bold]", 99.0),), queue=())
    text = printed(shown)
    assert "\x1b" not in text
    assert "\r" not in text
    assert "[bold]x" in printed(shown, 140)
    assert clean("a\x07b") == "a?b"


def test_an_ascii_terminal_gets_ascii():
    """Bars and curves, too."""
    assert printed(document(), 140, ascii=True).isascii()


def test_an_empty_gateway_has_a_frame():
    """No replica, no second, no placement: nothing is known, and that is said."""
    text = printed(live())
    for said in ("0 of 0 replicas ready", "QUEUE  empty", "LAST PLACEMENTS  none", "p50 -", "0 tok/s"):
        assert said in text


def test_a_warning_takes_the_footers_place():
    """Last line of all."""
    text = printed(document(), footer="q quits", warning="the gateway is away")
    assert text.rstrip().endswith("the gateway is away")
    assert "q quits" not in text


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "-"), (0.0004, "0.4 ms"), (0.25, "250 ms"), (2.5, "2.5 s"), (61.0, "61 s"), (600.0, "10 min"), (9000.0, "2 h")],
)  # fmt: skip
def test_durations_are_short(seconds: float | None, said: str):
    """In the unit in which they can be told apart."""
    assert duration(seconds) == said


def test_spans_round():
    """A countdown shows whole seconds."""
    assert (span(41.2), span(119.0), span(7200.0)) == ("41 s", "119 s", "2 h")


def test_a_card_alone_is_enough():
    """What only some engines tell may be missing from all."""
    bare = ReplicaCard(
        name="x",
        models=(),
        backend="",
        gpu="unknown",
        gpus=4,
        cost_tier="spot",
        usd_per_hour=0.0,
        lifecycle="starting",
        running=0,
    )
    assert "size unknown"[:10] in printed(live(bare))
    assert "4 x unknown" in printed(live(bare), 140)
