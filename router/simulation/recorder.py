"""A run's placements, written to a decisions file as the gateway would write them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from batching.audit import Sample
from batching.decision_record import DecisionRecord
from batching.decisions import Decisions
from config.schema import Config
from router.decision_documents import Pseudonyms
from router.decision_file import DecisionFile
from router.simulation.fleet import Machine

_AT_ONCE: Final = 256  # records a write
_KEY: Final = b"simulation"  # the trace is the user's own, and the same run gives the same bytes


class Recorder:
    """Begins the file anew. Methods raise OSError."""

    def __init__(self, path: Path, config: Config, machines: Sequence[Machine], policy: str) -> None:
        self.ledger = Decisions(ring=0, candidates=config.decisions.candidates, on_done=self._ended)
        self._profiles = [machine.profile for machine in machines]
        self._pending: list[DecisionRecord] = []
        path.unlink(missing_ok=True)
        self._file = DecisionFile(path, config, Pseudonyms(_KEY), policy=policy, max_bytes=None)
        self._file.write((), self._profiles)

    def close(self) -> None:
        """When the run is over."""
        self.ledger.settle()
        self._write()
        self._file.close()

    def _ended(self, record: DecisionRecord, _found: Sequence[Sample]) -> None:
        self._pending.append(record)
        if len(self._pending) >= _AT_ONCE:
            self._write()

    def _write(self) -> None:
        self._file.write(self._pending, self._profiles)
        self._pending = []
