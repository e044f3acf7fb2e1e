"""The board as text for a terminal: one frame from one document (pure). Says what fits the width, and the height if there is one.

Bars and curves have a shape without colour; where the terminal knows no more than ASCII they are made of that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from router.board.document import Live, PlacementLine, Pulse, QueueRow, ReplicaCard
from router.board.replica_table import Sort, ordered, replica_table
from router.board.words import clean, duration, span, usd

WIDE: Final = 110  # columns from which everything has a place
_LATELY: Final = 10  # seconds in which a latency that was seen still stands for now
_CURVE_S: Final = 30
_ROWS: Final = 5  # of the queue and of the placements; all are in the document
_FIXED: Final = 12  # lines of header, titles, footer and between them
_INDENT: Final = " " * 12


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """How it is to be looked at."""

    width: int = 80
    height: int | None = None  # None: as long as it gets
    sort: Sort = "name"
    ascii: bool = False
    footer: str = ""
    warning: str = ""


def frame(live: Live, view: View) -> RenderableType:
    """Header, replicas, queue, placements."""
    cards, more, placements = _fitting(ordered(live.replicas, view.sort), live, view)
    wide = view.width >= WIDE
    table = replica_table(cards, live.unix_s, width=view.width, wide=wide, ascii_only=view.ascii)
    parts: list[RenderableType] = [_header(live, view), Text(), table]
    if more:
        parts.append(Text(f"and {more} more, further down by {view.sort}", style="dim"))
    parts += [Text(), *_queue(live.queue), Text(), *_placements(live, placements, view)]
    if view.footer or view.warning:
        parts += [Text(), Text(view.warning or view.footer, style="bold yellow" if view.warning else "dim")]
    return Group(*parts)


def _fitting(cards: list[ReplicaCard], live: Live, view: View) -> tuple[list[ReplicaCard], int, int]:
    """(cards shown, how many are not, placements shown): of a small screen replicas have the most, and one placement is always there."""
    if view.height is None:
        return cards, 0, _ROWS
    room = view.height - _FIXED - min(_ROWS + 1, len(live.queue))
    lines = 1 + _formula_lines(view)
    fit = max(3, room - lines)
    shown = cards if len(cards) <= fit else cards[: fit - 1]
    return shown, len(cards) - len(shown), min(_ROWS, max(1, (room - min(len(cards), fit)) // lines))


def _formula_lines(view: View) -> int:
    return 1 if view.width >= WIDE else 2


# -- header --------------------------------------------------------------------------------------------------------------


def _header(live: Live, view: View) -> RenderableType:
    pulses = live.pulses[-_CURVE_S:]
    ready = sum(card.lifecycle == "ready" for card in live.replicas)
    first = Text.assemble(
        ("penstock ", "bold"), live.penstock, f"   {ready} of {len(live.replicas)} replicas ready",
        f"   {live.workers} workers" if live.workers > 1 else "", f"   up {span(live.unix_s - live.started_unix_s)}",
    )  # fmt: skip
    if live.draining:
        first.append("   draining", "bold yellow")
    rate = pulses[-1].output_tokens if pulses else 0
    waiting = sum(row.depth for row in live.queue)
    curve = _curve([float(pulse.output_tokens) for pulse in pulses], view)
    speed = Text.assemble(
        (f"{rate} tok/s ", "bold"), (curve, "cyan"), "   queue ", (str(waiting), "bold yellow" if waiting else "")
    )
    errors, ended = sum(p.errors for p in live.pulses[-60:]), sum(p.requests for p in live.pulses[-60:])
    speed.append(f"   {ended} requests/min")
    if errors:
        speed.append(f", {errors} failed", "bold red")
    return Group(first, _money(live), speed, _latency(live.pulses, pulses, view))


def _money(live: Live) -> Text:
    money = live.money
    text = Text.assemble((f"${money.usd_per_hour:.2f}/h", "bold"))
    if money.on_demand_usd_per_hour:
        saved = 1 - money.usd_per_hour / money.on_demand_usd_per_hour
        text.append(f"   all on demand ${money.on_demand_usd_per_hour:.2f}/h")
        text.append(f" ({-saved:+.0%})" if abs(saved) >= 0.005 else "", "green" if saved > 0 else "yellow")
    text.append(f"   busy ${money.busy_usd_per_hour:.2f}/h")
    if money.usd_per_million_output_tokens is not None:
        text.append(f"   {usd(money.usd_per_million_output_tokens)}/Mtok lately")
    return text


def _latency(all_pulses: Sequence[Pulse], pulses: Sequence[Pulse], view: View) -> Text:
    text = Text()
    for name, low, high in (("TTFT", "ttft_p50_s", "ttft_p95_s"), ("ITL", "itl_p50_s", "itl_p95_s")):
        p50, p95 = _lately(all_pulses, low), _lately(all_pulses, high)
        curve = _curve([getattr(pulse, high) for pulse in pulses], view) if view.width >= WIDE else ""
        text.append(f"{name} ", "bold").append(f"p50 {duration(p50)}  p95 {duration(p95)} ").append(
            curve, "cyan"
        ).append("   ")
    return text


def _lately(pulses: Sequence[Pulse], name: str) -> float | None:
    for pulse in reversed(pulses[-_LATELY:]):
        if (found := getattr(pulse, name)) is not None:
            return float(found)
    return None


def _curve(values: Sequence[float | None], view: View) -> str:
    marks = "_.-=+*%#" if view.ascii else "▁▂▃▄▅▆▇█"
    most = max((value for value in values if value is not None), default=0.0)
    return "".join(
        " " if value is None else marks[0 if most <= 0 else min(7, int(8 * value / most))] for value in values
    )


# -- queue and placements ------------------------------------------------------------------------------------------------


def _queue(rows: Sequence[QueueRow]) -> list[RenderableType]:
    if not rows:
        return [Text.assemble(("QUEUE", "dim"), "  empty")]
    shown = rows[:_ROWS]
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for title, right in (
        ("QUEUE", False),
        ("TIER", False),
        ("TENANT", False),
        ("WAIT", True),
        ("TOKENS", True),
        ("OLDEST", True),
    ):
        table.add_column(title, justify="right" if right else "left", no_wrap=True, overflow="ellipsis")
    for row in shown:
        table.add_row(
            Text(clean(row.model)),
            row.service_tier,
            Text(clean(row.tenant)),
            str(row.depth),
            str(row.tokens),
            duration(row.oldest_s),
        )
    if len(rows) == len(shown):
        return [table]
    rest = sum(row.depth for row in rows[len(shown) :])
    return [table, Text(f"  and {rest} requests of {len(rows) - len(shown)} more rows", style="dim")]


def _placements(live: Live, most: int, view: View) -> list[RenderableType]:
    """Newest first: where it went and what came of it, then why in the placement's own words."""
    if not live.placements:
        return [Text.assemble(("LAST PLACEMENTS", "dim"), "  none")]
    found: list[RenderableType] = [Text("LAST PLACEMENTS", "dim")]
    for line in live.placements[:most]:
        found += [_placement(line, live.unix_s, view), _formula(line, view)]
    return found


def _placement(line: PlacementLine, unix_s: float, view: View) -> Text:
    request = clean(line.request_id)
    text = Text.assemble(
        f"{span(max(0.0, unix_s - line.unix_s)):>6} ago  ",
        request if view.width >= WIDE or len(request) <= 14 else f"{request[:13]}~",
        f"  {clean(line.model)}  -> ", (line.replica, "bold"), f" by {line.reason}", no_wrap=True, overflow="ellipsis",
    )  # fmt: skip
    good = line.outcome in {None, "completed"}
    text.append(f"  {line.outcome or 'runs'}", "green" if good else "bold red")
    if line.queued_s >= 0.001:
        text.append(f"  queued {duration(line.queued_s)}")
    if line.ttft_s is not None:
        text.append(f"  ttft {duration(line.ttft_s)}")
    return text


def _formula(line: PlacementLine, view: View) -> Text:
    """What was expected, without what the line above it says; where it is wide, what the next best would have been, too."""
    words = f"expected {clean(line.formula).split(': ', 1)[-1]}"
    if view.width >= WIDE and len(line.candidates) > 1:
        other = line.candidates[1]
        words += f"; {other.replica} ttft {other.ttft_s:.3f}s ${other.usd * 1e6:.2f}e-6"
    lines = wrap(words, view.width - len(_INDENT), max_lines=_formula_lines(view), placeholder=" ...")
    return Text("\n".join(_INDENT + text for text in lines), "dim", no_wrap=True, overflow="ellipsis")
