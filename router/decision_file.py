"""A decisions file: JSON lines, a header first, then one line a placement that has ended; written by appending, bounded in size.

Every process that writes begins with a header of its own, which names the fields, the policy and the clock; a line with `fleet`
follows whenever the machines are others than before. Nothing in it says what anybody asked or was answered.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Final

import msgspec

from batching.decision_record import OFFER_FIELDS, DecisionRecord, Values
from batching.replica import ReplicaProfile
from config.schema import Config, Queue, ReplicaConfig, Scheduling
from router.decision_documents import FIELDS, VERSION, Document, Pseudonyms, document, parsed

_REPLICA: Final = OFFER_FIELDS.index("replica")
MARK: Final = "penstock_decisions"
MAX_BYTES: Final = 64 * 2**20  # some twenty thousand placements; then it is renamed to NAME.1, over the one before


class DecisionFile:
    """Opens with the first line. Blocking: the gateway calls it in a thread, one after the other. Methods raise OSError."""

    def __init__(
        self,
        path: Path,
        config: Config,
        names: Pseudonyms,
        *,
        policy: str,
        unix_at_zero: float | None = None,
        max_bytes: int | None = MAX_BYTES,
    ) -> None:
        self._path = path
        self._names = names
        self._unix_at_zero = unix_at_zero
        self._max_bytes = max_bytes
        self._header = {
            MARK: VERSION,
            "policy": policy,
            "unix_at_zero": unix_at_zero,
            "scheduling": config.scheduling.model_dump(mode="json"),
            "queue": config.queue.model_dump(mode="json"),
            "fields": FIELDS,
        }
        self._file: BinaryIO | None = None
        self._turn = Lock()  # a thread outlives the task that waited for it
        self._fleet: Sequence[ReplicaProfile] = ()
        self._rows: dict[
            str, Values
        ] = {}  # of each candidate, as last written: one that offers the same again is only named

    def write(self, records: Iterable[DecisionRecord], fleet: Sequence[ReplicaProfile]) -> None:
        """What has ended since the last call, under the machines of now."""
        with self._turn:
            self._write(records, fleet)

    def close(self) -> None:
        """Also where nothing was ever written."""
        with self._turn:
            self._close()

    def _write(self, records: Iterable[DecisionRecord], fleet: Sequence[ReplicaProfile]) -> None:
        file = self._opened()
        if self._max_bytes is not None and file.tell() > self._max_bytes:
            self._close()
            self._path.replace(self._path.with_name(self._path.name + ".1"))
            file = self._opened()
        lines: list[object] = []
        if tuple(fleet) != tuple(self._fleet):
            self._fleet = fleet
            lines.append({"fleet": [replica_of(profile) for profile in fleet]})
        lines += map(self._line, records)
        if lines:
            file.write(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
            file.flush()

    def _line(self, record: DecisionRecord) -> Document:
        found = document(record, self._names, unix_at_zero=self._unix_at_zero, named=False)
        rows: list[Values | str] = []
        for values in record.offers:
            replica = values[_REPLICA]
            same = self._rows.get(replica) == values
            self._rows[replica] = values
            rows.append(replica if same else values)
        return {**found, "offers": rows}

    def _close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> BinaryIO:
        if self._file is None:
            torn = _ends_torn(self._path)
            self._file = self._path.open("ab")
            self._file.write((b"\n" if torn else b"") + msgspec.json.encode(self._header) + b"\n")
            self._fleet, self._rows = (), {}
        return self._file


def _ends_torn(path: Path) -> bool:
    """Whether whoever wrote it last was stopped in the middle of a line."""
    try:
        with path.open("rb") as file:
            file.seek(-1, 2)
            return file.read(1) != b"\n"
    except OSError:  # there is none, or it is empty
        return False


def replica_of(profile: ReplicaProfile) -> Document:
    """A machine as a simulated replica of a configuration: its type and sizes, no address."""
    capacity = ("max_num_seqs", "max_num_batched_tokens", "kv_blocks", "block_size", "max_model_len")
    return {
        "name": profile.id,
        "backend": "simulated",
        "models": [{"name": name, "kind": kind} for name, kind in profile.models.items()],
        "gpu": {"type": profile.gpu, "count": profile.gpu_count},
        "cost": {"tier": profile.cost_tier, "usd_per_hour": profile.usd_per_hour},
        "capacity": {name: getattr(profile, name) for name in capacity},
        "simulated": {
            "speed": profile.speed,
            "shape": profile.shape,
            "pipeline_parallel": profile.pipeline_parallel,
        },
    }


@dataclass(slots=True, kw_only=True)
class Recording:
    """What a file tells."""

    records: list[DecisionRecord] = field(default_factory=list)
    offsets: list[float] = field(default_factory=list)  # of each record's clock: what to add so that all share one
    replicas: dict[str, ReplicaConfig] = field(default_factory=dict)  # every one there was, as it was last
    policy: str = ""
    scheduling: Scheduling = field(default_factory=Scheduling)
    queue: Queue = field(default_factory=Queue)


def read_decisions(path: Path) -> Recording:
    """Raises OSError, or a ValueError of one line that says what is wrong with the file and what to do.

    A line cut short is passed over where its writer was stopped: at the end, or before another writer's header.
    """
    found = Recording()
    names: Mapping[str, Sequence[str]] | None = None
    offset = 0.0
    rows: dict[str, list[Any]] = {}
    for number, line in _lines(path):
        where = f"{path.name}:{number}"
        if MARK in line:
            names, offset = _header(line, where, found)
            rows = {}
        elif names is None:
            raise ValueError(
                f"{where}: no decisions file; its first line must be a header with `{MARK}`, as `decisions.file` writes it"
            )
        elif "fleet" in line:
            found.replicas |= _fleet(line["fleet"], where)
        else:
            try:
                line["offers"] = [_row(row, names["offers"], rows) for row in line["offers"]]
                found.records.append(parsed(line, names))
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"{where}: not a placement ({_said(error)}); was the file edited?") from None
            found.offsets.append(offset)
    if names is None:
        raise ValueError(f"{path.name}: empty; a file begins when the first placement has ended")
    return found


def _row(row: Any, names: Sequence[str], rows: dict[str, list[Any]]) -> list[Any]:
    """A candidate's row; one that is only named offers what it last did."""
    if isinstance(row, str):
        return rows[row]
    rows[row[names.index("replica")]] = row
    return list(row)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    torn: int | None = None
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if not raw.strip():
                continue
            try:
                line = msgspec.json.decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError):
                line = None
            if torn is not None and not (isinstance(line, dict) and MARK in line):
                raise ValueError(f"{path.name}:{torn}: not JSON; was the file edited?")
            torn = None
            if isinstance(line, dict):
                yield number, line
            elif number == 1:
                raise ValueError(f"{path.name}:1: no decisions file; `decisions.file` of a configuration names one")
            else:
                torn = number


def _header(line: Mapping[str, Any], where: str, found: Recording) -> tuple[Mapping[str, Sequence[str]], float]:
    version = line[MARK]
    if version != VERSION:
        raise ValueError(
            f"{where}: decisions of version {version}, and this penstock reads version {VERSION}; "
            "replay it with the penstock that wrote it, or record anew"
        )
    try:
        found.policy = str(line["policy"])
        found.scheduling = Scheduling.model_validate(line["scheduling"])
        found.queue = Queue.model_validate(line["queue"])
        return {name: list(line["fields"][name]) for name in FIELDS}, float(line["unix_at_zero"] or 0.0)
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{where}: a header that cannot be read ({_said(error)}); was the file edited?") from None


def _fleet(told: Any, where: str) -> dict[str, ReplicaConfig]:
    try:
        return {row["name"]: ReplicaConfig.model_validate(row) for row in told}
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{where}: a fleet that cannot be read ({_said(error)}); was the file edited?") from None


def _said(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
