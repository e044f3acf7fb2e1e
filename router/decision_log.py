"""The gateway's decision ledger at work: settles what has ended, feeds the error metrics, and writes the file beside the loop.

Nothing waits for it, and nothing fails with it: a disk that is full or slow costs records, which are counted, never requests.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from batching.audit import SIGNAL_NAMES, Sample, error_ratio
from batching.decision_record import DecisionRecord
from batching.decisions import Decisions
from batching.replica import ReplicaProfile
from config.schema import Config
from metrics.catalog import Metrics
from router.decision_documents import Document, Pseudonyms, document
from router.decision_file import DecisionFile

log = logging.getLogger("penstock")

_FLUSH_S: Final = 0.5
_MOST_PENDING: Final = 16_384  # records that a slow disk may fall behind: some 50 MB
_COMPLAIN_S: Final = 60.0  # about a file that cannot be written


class Asked(msgspec.Struct, kw_only=True):
    """Which placements, newest first; None: of all."""

    limit: int
    request_id: str | None = None
    replica: str | None = None
    model: str | None = None


Fleet = Callable[[], Sequence[ReplicaProfile]]


class DecisionLog:
    """`ledger` is the scheduler's; None: the configuration has it off."""

    def __init__(self, config: Config, metrics: Metrics, names: Pseudonyms | None = None) -> None:
        """`names`: those of all workers, where there are several."""
        wanted = config.decisions
        self._config = config
        self._metrics = metrics
        self.names = Pseudonyms() if names is None else names
        self._unix_at_zero: float | None = None
        self._pending: list[DecisionRecord] = []
        self._file: DecisionFile | None = None
        self._complained_s: float | None = None
        self.ledger: Decisions | None = None
        if wanted.ring or wanted.file is not None:
            self.ledger = Decisions(ring=wanted.ring, candidates=wanted.candidates, on_done=self._ended)

    async def run(self, fleet: Fleet) -> None:
        """Until it is cancelled; then `close`."""
        loop = asyncio.get_running_loop()
        self._unix_at_zero = datetime.now(UTC).timestamp() - loop.time()
        if self._config.decisions.file is not None:
            self._file = DecisionFile(
                Path(self._config.decisions.file),
                self._config,
                self.names,
                policy=self._config.scheduling.policy,
                unix_at_zero=self._unix_at_zero,
            )
        while True:
            await asyncio.sleep(_FLUSH_S)
            try:
                await self.flush(fleet)
            except Exception:  # an error of ours costs records, not the gateway
                log.exception("decisions could not be taken in")

    async def flush(self, fleet: Fleet) -> None:
        """What has ended by now is judged, and written where there is a file."""
        if self.ledger is None:
            return
        self.ledger.settle()
        batch, self._pending = self._pending, []
        if self._file is None or not batch:
            return
        outcome = "written"
        try:
            await asyncio.to_thread(self._file.write, batch, list(fleet()))
        except OSError as error:
            outcome = "dropped"
            self._complain(error)
        self._metrics.decision_records_total.labels(outcome).inc(len(batch))

    async def close(self, fleet: Fleet) -> None:
        """The last records, and the file."""
        await self.flush(fleet)
        if self._file is not None:
            await asyncio.to_thread(self._file.close)

    def recent(self, asked: Asked) -> list[Document]:
        """For people; nothing where the ledger is off."""
        if self.ledger is None:
            return []
        found = self.ledger.recent(
            limit=asked.limit, request_id=asked.request_id, replica=asked.replica, model=asked.model
        )
        return [document(record, self.names, unix_at_zero=self._unix_at_zero, named=True) for record in found]

    def _ended(self, record: DecisionRecord, found: Sequence[Sample]) -> None:
        histogram = self._metrics.prediction_error_ratio
        for place, predicted, _, actual in found:
            histogram.labels(record.replica, SIGNAL_NAMES[place]).observe(error_ratio(predicted, actual))
        if self._config.decisions.file is None:
            return
        if len(self._pending) < _MOST_PENDING:
            self._pending.append(record)
        else:
            self._metrics.decision_records_total.labels("dropped").inc()

    def _complain(self, error: OSError) -> None:
        now = asyncio.get_running_loop().time()
        if self._complained_s is None or now - self._complained_s >= _COMPLAIN_S:
            self._complained_s = now
            log.warning(
                "decisions.file %s cannot be written, records are dropped: %s",
                self._config.decisions.file,
                error.strerror or error,
            )
