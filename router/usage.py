"""What each request has used, read off its exchange at its end: tokens as the engine reported them or as we counted, dollars as billed.

What has ended is pending until the book takes it: at once where somebody asks, else twice a second; of a worker the book is the
supervisor's, and what is pending goes there with its metrics.
"""

from datetime import UTC, datetime
from typing import Final

from batching.request import Outcome
from config.usage import Usage as Bounds
from router.exchange import Exchange
from router.money import ANONYMOUS
from router.usage_book import HOUR_S, Entry, Group, Pending, UsageBook, Used
from router.usage_query import Asked, Found, answer

_COUNTED: Final = {
    Outcome.COMPLETED: "completed",
    Outcome.CANCELLED: "cancelled",
    Outcome.FAILED: "failed",
    Outcome.REJECTED: "refused",
    Outcome.EVICTED: "refused",
}


class UsageLog:
    """Of one gateway, or of one worker of several."""

    def __init__(self, bounds: Bounds, started_unix_s: int) -> None:
        self._book = UsageBook(bounds, started_unix_s)
        self._pending = Pending(bounds.max_groups)

    def ended(self, exchange: Exchange) -> None:
        """Once a request."""
        for entry in entries_of(exchange, datetime.now(UTC).timestamp()):
            self._pending.add(entry)

    def take(self) -> list[Entry]:
        """What has ended since the last time; for a book that is kept elsewhere."""
        return self._pending.take()

    def settle(self) -> None:
        """Into our own book, which is the only one."""
        self._book.extend(self._pending.take())

    def answer(self, asked: Asked) -> Found:
        """Of this process alone, to the last request."""
        self.settle()
        return answer(self._book, asked)


def entries_of(exchange: Exchange, unix_s: float) -> list[Entry]:
    """One with the request and its tokens, where it was answered last; one for each other replica that it cost money at.

    Nothing of what was never read: there is nobody to count it for.
    """
    labels, spec, bill = exchange.labels, exchange.spec, exchange.bill
    if labels is None or spec is None:
        return []
    hour, tenant, (model, tier) = int(unix_s) // HOUR_S * HOUR_S, spec.tenant or ANONYMOUS, labels
    used, where = Used(requests=1), ("", "")
    setattr(used, _COUNTED[exchange.outcome], 1)
    if exchange.placed is not None:
        placement = exchange.placed.placement
        where = (str(placement.cost_tier), placement.replica)
        _count_tokens(exchange, used)
    found = [Entry(hour, Group(tenant, model, tier, *where), used)]
    if bill is not None:
        for machine, usd in bill.parts.items():
            there = (str(machine.cost_tier), machine.replica)
            if there == where:
                used.usd += usd
            else:
                found.append(Entry(hour, Group(tenant, model, tier, *there), Used(usd=usd)))
    return found


def _count_tokens(exchange: Exchange, used: Used) -> None:
    """As `penstock_tokens_total` counts them."""
    usage, request = exchange.usage, exchange.request
    if usage is not None and usage.prompt_tokens is not None:
        used.input_tokens, used.cached_input_tokens = usage.prompt_tokens, usage.cached_tokens or 0
        used.output_tokens, used.reasoning_tokens = usage.completion_tokens or 0, usage.reasoning_tokens or 0
    elif request is not None:
        used.input_tokens = used.estimated_input_tokens = request.prompt_tokens
        used.output_tokens = used.estimated_output_tokens = exchange.timeline.output_tokens
