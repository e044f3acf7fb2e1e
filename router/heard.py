"""Who is told of a stream's tokens as they come, beside its client: the ledger, the metrics, the trace.

Of one attempt; what the tokens are is the relay's to say.
"""

from batching.request import NOWHERE
from batching.ticket import Lease
from metrics.handles import StreamHandles
from router.admission import Admission
from router.exchange import Exchange
from router.report import Report


class Heard:
    """One object a stream, in place of a function for each occasion with all that it closes over."""

    __slots__ = ("_admission", "_exchange", "_lease", "_meters", "_report")

    def __init__(
        self, exchange: Exchange, lease: Lease, meters: StreamHandles, report: Report, admission: Admission
    ) -> None:
        self._exchange = exchange
        self._lease = lease
        self._meters = meters
        self._report = report
        self._admission = admission

    def first(self, now: float) -> None:
        """The first token of this engine: of an answer that goes on, it ends the gap."""
        exchange, move = self._exchange, self._exchange.move
        self._report.phase(exchange, "streaming")
        if exchange.trace is not None:
            exchange.trace.spoke(self._lease, now, move.since_s)
        if move.since_s is not None:
            self._report.resumed(exchange, now - move.since_s)
        elif not exchange.collected:
            self._meters.observe_ttft(now - exchange.inbound.received_s)
        move.since_s = move.until_s = None
        move.avoid, exchange.failures = NOWHERE, 0
        self._admission.first_token(self._lease)

    def step(self, total: int) -> None:
        """So many tokens came of this engine: what the ledger holds for it grows."""
        self._admission.tokens(self._lease, total)
