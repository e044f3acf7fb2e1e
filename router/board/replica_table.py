"""The table of replicas that `penstock top` shows: a line each, the KV cache as a bar as wide as there is room for (pure)."""

from collections.abc import Callable, Sequence
from typing import Final, Literal

from rich.table import Table
from rich.text import Text

from router.board.document import ReplicaCard
from router.board.words import clean, span, usd

Sort = Literal["name", "kv", "price", "tokens"]
_BAR: Final = (8, 40)  # columns, at least and at most
_NAME: Final = (15, 34)  # at most, narrow and wide
_TIERS: Final = {"reserved": "blue", "spot": "magenta", "on_demand": "cyan"}
_LIFECYCLES: Final = {"ready": "green", "down": "bold red", "draining": "yellow", "reclaiming": "bold yellow"}
_LEFT: Final = frozenset({"REPLICA", "GPU", "TIER", "KV", "STATE"})


def ordered(cards: Sequence[ReplicaCard], by: Sort) -> list[ReplicaCard]:
    """By name, the fullest first, the cheapest first, or who says most."""
    orders: dict[Sort, Callable[[ReplicaCard], tuple[float | str, str]]] = {
        "name": lambda card: (card.name, card.name),
        "kv": lambda card: (-(_taken(card) or 0.0), card.name),
        "price": lambda card: (card.usd_per_hour, card.name),
        "tokens": lambda card: (-card.output_tokens_per_s, card.name),
    }
    return sorted(cards, key=orders[by])


def replica_table(cards: Sequence[ReplicaCard], unix_s: float, *, width: int, wide: bool, ascii_only: bool) -> Table:
    """Cells are as wide as they need; of what is left the state has what it needs, and the bar the rest."""
    titles = _titles(wide=wide)
    rows = [_cells(card, unix_s, wide=wide) for card in cards]
    widths = [max([len(title), *(row[at].cell_len for row in rows)]) for at, title in enumerate(titles)]
    bar_at, state_at = titles.index("KV"), len(titles) - 1
    widths[0] = min(widths[0], _NAME[wide])
    left = width - len(titles) - sum(widths) + widths[bar_at]
    widths[bar_at] = bar_width = min(max(left, _BAR[0]), _BAR[1])
    widths[state_at] -= max(0, bar_width - left)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    for title, columns in zip(titles, widths, strict=True):
        justify: Literal["left", "right"] = "left" if title in _LEFT else "right"
        table.add_column(title, width=max(columns, len(title)), no_wrap=True, overflow="ellipsis", justify=justify)
    for card, row in zip(cards, rows, strict=True):
        row[bar_at] = bar(card, bar_width, ascii_only=ascii_only)
        table.add_row(*row)
    return table


def _titles(*, wide: bool) -> list[str]:
    every = ("REPLICA", "GPU", "TIER", "$/H", "KV", "USED", "RUN", "TOK/S", "$/MTOK", "STATE")
    return [title for title in every if wide or title not in {"GPU", "$/MTOK"}]


def _cells(card: ReplicaCard, unix_s: float, *, wide: bool) -> list[Text]:
    """In the order of the titles; the bar's is empty until its width is known."""
    price, taken = card.usd_per_million_output_tokens, _taken(card)
    gpu = Text(f"{card.gpus} x {card.gpu}" if card.gpus > 1 else card.gpu)
    slots = f"/{card.max_num_seqs}" if wide and card.max_num_seqs else ""
    return [
        Text(clean(card.name)),
        *((gpu,) if wide else ()),
        Text(card.cost_tier.replace("on_demand", "demand"), _TIERS.get(card.cost_tier, "")),
        Text(f"{card.usd_per_hour:.2f}"),
        Text(),
        Text("?" if taken is None else f"{taken:.0%}"),
        Text(f"{card.running}{slots}"),
        Text(f"{card.output_tokens_per_s:.0f}"),
        *((Text("-" if price is None else usd(price)),) if wide else ()),
        _state(card, unix_s, wide=wide),
    ]


def bar(card: ReplicaCard, width: int, *, ascii_only: bool = False) -> Text:
    """The KV cache: held, others' as the engine says, what running answers are expected to grow by, free."""
    if not card.kv_blocks:
        return Text("size unknown"[:width], "dim")
    held, foreign, forecast, free = "#+-." if ascii_only else "█▓░·"
    text, at, blocks = Text(), 0, 0
    growth = max(0, card.reserved_blocks - card.held_blocks)
    for amount, mark, style in (
        (card.held_blocks, held, "green"),
        (card.foreign_blocks, foreign, "yellow"),
        (growth, forecast, "cyan"),
    ):
        blocks += amount
        end = min(width, max(round(width * blocks / card.kv_blocks), at + (amount > 0)))
        text.append(mark * (end - at), style)
        at = end
    return text.append(free * (width - at), "dim")


def _taken(card: ReplicaCard) -> float | None:
    """Of the KV cache, forecast growth included; None: its size is not known."""
    if not card.kv_blocks:
        return None
    return min(1.0, (max(card.reserved_blocks, card.held_blocks) + card.foreign_blocks) / card.kv_blocks)


def _state(card: ReplicaCard, unix_s: float, *, wide: bool) -> Text:
    """Where it is in its life, until when, and why."""
    text = Text(card.lifecycle, _LIFECYCLES.get(card.lifecycle, ""))
    if card.deadline_unix_s is not None:
        left_s = card.deadline_unix_s - unix_s
        text.append(f" {span(left_s)}" if left_s > 0 else " overdue", "bold yellow")
    if card.circuit != "closed":
        text.append(f" {'circuit ' if wide else ''}{card.circuit.replace('_', ' ')}", "bold red")
    if card.reason is not None and not card.lifecycle.startswith(card.reason):
        text.append(f" {card.reason}", "yellow")
    if card.why and wide and card.lifecycle != "ready":
        text.append(f" ({clean(card.why)})", "dim")
    return text
