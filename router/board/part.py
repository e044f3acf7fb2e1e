"""One worker's part of the board, and all parts together (pure): what each has on its replicas, what waits there, what it placed.

What all workers know alike - profiles, prices, what engines say of themselves - is not in it: whoever is asked has it, too.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from router.board.changes import latest_placements
from router.board.document import PlacementLine, QueueRow
from router.board.pulse import Second, joined

MOST_ROWS: Final = (
    200  # of the queue: more are told as one a model and tier, so that thousands of tenants make no event of megabytes
)
OTHERS: Final = "others"
_CIRCUITS: Final = ("closed", "half_open", "open")


class Wanted(msgspec.Struct, array_like=True, frozen=True):
    """What is asked of a worker: its seconds after this one; None: all it has."""

    since_s: int | None = None


class Held(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What one worker has on one replica; or all of them."""

    running: int = 0
    held_blocks: int = 0
    reserved_blocks: int = 0
    foreign_blocks: int = 0  # each sees the same, beyond what all workers hold
    output_tokens_per_s: float = 0.0
    input_tokens_per_s: float = 0.0
    circuit: str = "closed"

    def __add__(self, other: "Held") -> "Held":
        """Of both: foreign blocks are no sum, and who has had the worst experience is believed."""
        return Held(
            self.running + other.running,
            self.held_blocks + other.held_blocks,
            self.reserved_blocks + other.reserved_blocks,
            max(self.foreign_blocks, other.foreign_blocks),
            round(self.output_tokens_per_s + other.output_tokens_per_s, 1),
            round(self.input_tokens_per_s + other.input_tokens_per_s, 1),
            max(self.circuit, other.circuit, key=_CIRCUITS.index),
        )


NOTHING: Final = Held()


class Part(msgspec.Struct, array_like=True, frozen=True):
    """One worker's."""

    started_unix_s: float
    draining: bool = False
    held: dict[str, Held] = {}  # by replica; where there is nothing to tell there is no entry
    queue: tuple[QueueRow, ...] = ()
    seconds: tuple[Second, ...] = ()
    placements: tuple[PlacementLine, ...] = ()


@dataclass(frozen=True, slots=True)
class Whole:
    """Of all parts."""

    workers: int
    started_unix_s: float
    draining: bool
    held: Mapping[str, Held]
    queue: tuple[QueueRow, ...]
    seconds: Sequence[Second]
    placements: tuple[PlacementLine, ...]


def together(parts: Sequence[Part]) -> Whole:
    """Of at least one. The order of `parts` does not matter, but for the rounding of sums."""
    held: dict[str, Held] = {}
    for part in parts:
        for name, its in part.held.items():
            before = held.get(name)
            held[name] = its if before is None else before + its
    return Whole(
        workers=len(parts),
        started_unix_s=min(part.started_unix_s for part in parts),
        draining=any(part.draining for part in parts),
        held=held,
        queue=rows_together(row for part in parts for row in part.queue),
        seconds=joined(part.seconds for part in parts),
        placements=latest_placements(tuple(line for part in parts for line in part.placements)),
    )


def rows_together(rows: Iterable[QueueRow]) -> tuple[QueueRow, ...]:
    """One for each model, tier and tenant, the longest first; beyond `MOST_ROWS` tenants are told together."""
    found = _added(rows, lambda row: row)
    if len(found) <= MOST_ROWS:
        return found
    rest = _added(found[MOST_ROWS:], lambda row: msgspec.structs.replace(row, tenant=OTHERS))
    return (*found[:MOST_ROWS], *rest[:MOST_ROWS])


def _added(rows: Iterable[QueueRow], named: Callable[[QueueRow], QueueRow]) -> tuple[QueueRow, ...]:
    found: dict[tuple[str, str, str], QueueRow] = {}
    for told in rows:
        row = named(told)
        key = row.model, row.service_tier, row.tenant
        before = found.get(key)
        if before is not None:
            row = msgspec.structs.replace(
                row,
                depth=before.depth + row.depth,
                tokens=before.tokens + row.tokens,
                oldest_s=max(before.oldest_s, row.oldest_s),
            )
        found[key] = row
    return tuple(sorted(found.values(), key=_longest_first))


def _longest_first(row: QueueRow) -> tuple[int, str, str, str]:
    return -row.depth, row.model, row.service_tier, row.tenant
