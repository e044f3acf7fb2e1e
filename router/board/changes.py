"""One event from two whole documents, and the whole document again from the events (pure).

Whoever watches applies each event to what the ones before came to: `penstock top` does by this very code, the board by its own.
"""

from typing import Final

import msgspec

from router.board.document import Live, PlacementLine, Pulse
from router.board.pulse import KEPT_S

SHOWN_PLACEMENTS: Final = 20


def changes(before: Live, after: Live) -> Live:
    """What leads from one to the other; the whole, where that is no small step (replicas come in between, a worker was lost)."""
    known = {card.name: card for card in before.replicas}
    told = {key(line): line for line in before.placements}
    names = {card.name for card in after.replicas}
    seen_s = before.pulses[-1].unix_s if before.pulses else float("-inf")
    event = msgspec.structs.replace(
        after,
        whole=False,
        replicas=tuple(card for card in after.replicas if known.get(card.name) != card),
        gone=tuple(name for name in known if name not in names),
        pulses=tuple(pulse for pulse in after.pulses if pulse.unix_s > seen_s),
        placements=tuple(line for line in after.placements if told.get(key(line)) != line),
    )
    return event if applied(before, event) == after else after


def applied(known: Live | None, event: Live) -> Live:
    """The whole document after `event`; raises ValueError where a first event is none."""
    if event.whole:
        return event
    if known is None:
        raise ValueError("the first event of a stream is to be whole")
    cards = {card.name: card for card in known.replicas}
    for name in event.gone:
        cards.pop(name, None)
    cards.update((card.name, card) for card in event.replicas)
    return msgspec.structs.replace(
        event,
        whole=True,
        replicas=tuple(cards.values()),
        gone=(),
        pulses=latest_pulses((*known.pulses, *event.pulses)),
        placements=latest_placements((*known.placements, *event.placements)),
    )


def latest_pulses(pulses: tuple[Pulse, ...]) -> tuple[Pulse, ...]:
    return pulses[-KEPT_S:]


def latest_placements(lines: tuple[PlacementLine, ...]) -> tuple[PlacementLine, ...]:
    """Newest first; of two words about one placement the later holds."""
    found = {key(line): line for line in lines}
    return tuple(sorted(found.values(), key=_newest_first)[:SHOWN_PLACEMENTS])


def key(line: PlacementLine) -> tuple[str, float, str]:
    """A request may be placed more than once, and two that share an id at once."""
    return line.request_id, line.unix_s, line.replica


def _newest_first(line: PlacementLine) -> tuple[float, str, str]:
    return -line.unix_s, line.request_id, line.replica
