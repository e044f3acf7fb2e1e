"""All keys by their digests, in some 90 bytes each: a million take no more than a small model's tokenizer.

Decides what a digest belongs to, not whether that may be used now. A look costs the same whether it finds something or not: a few
probes by eight bytes of a hash that nobody chooses, and exactly one comparison of whole digests, in constant time.
"""

import secrets
from array import array
from collections.abc import Collection, Iterator, Sequence
from hmac import compare_digest
from math import inf
from struct import Struct
from sys import byteorder
from typing import Final, NamedTuple

import msgspec
import numpy as np

from router.tenants.keys import DIGEST_BYTES, ID_BYTES, BadRecord, good_ids

REVOKED: Final = 0x80  # beside the scopes' bits
# One key: all of it lies together, because a look at a large store costs little but the memory's latency.
_ROW: Final = np.dtype(
    [
        ("digest", f"V{DIGEST_BYTES}"),
        ("id", f"S{ID_BYTES}"),
        ("start_s", "f8"),
        ("end_s", "f8"),
        ("tenant", "u4"),
        ("mask", "u4"),
    ]
)
_SIZE: Final = _ROW.itemsize
_READ: Final = Struct(f"={DIGEST_BYTES}s{ID_BYTES}sddII")
_HEAD_BYTES: Final = 8
_STEP_ROWS: Final = 300  # about a millisecond
_LOOK_ROWS: Final = 10_000  # the same, where ids are all that is looked at


class Columns(NamedTuple):
    """Keys one beside another: digests behind each other; scopes, and REVOKED; from when to when they are good, in Unix seconds."""

    digests: bytes
    ids: Sequence[str]
    tenants: Sequence[str]
    masks: Sequence[int]
    starts_s: Sequence[float]
    ends_s: Sequence[float]


class Row(NamedTuple):
    """One key as it lies in an index, which knows the tenant's name."""

    digest: bytes
    id: bytes
    start_s: float
    end_s: float
    tenant: int
    mask: int


class Found(msgspec.Struct, frozen=True, gc=False):
    """What is known of a key. Times in Unix seconds."""

    id: str
    tenant: str
    mask: int
    not_before_s: float
    ends_s: float


class KeyIndex:
    """Grows by `add` and `join`, each of which is done at once: between two of them it is whole."""

    __slots__ = ("_names", "_rows", "_size", "_table", "_tenants", "_twice", "_wrap", "doubles")

    def __init__(self, room: int) -> None:
        """`room`: at least as many as there will be keys."""
        size = 1 << max(4, (2 * room).bit_length())
        self._wrap = size - 1
        self._table = array("I", bytes(4 * size))  # slot -> row; 0: empty
        # Row 0 is nobody's: what is compared where nothing was found.
        self._rows = bytearray(secrets.token_bytes(DIGEST_BYTES) + bytes(_SIZE - DIGEST_BYTES))
        self._size = 0
        self._twice = 0  # rows that no slot leads to: their keys were there
        self.doubles: set[str] = set()  # second ids of keys
        self._tenants: dict[str, int] = {}
        self._names: list[str] = []

    def __len__(self) -> int:
        return self._size - self._twice

    @property
    def has_room(self) -> bool:
        """For more, before looks become long."""
        return 4 * self._size < 3 * len(self._table)

    def add(self, keys: Columns) -> None:
        """Many at once. Raises BadRecord where a key, or one that could not be told from it, is there already; then the index is of no use."""
        for row, other in self._added(keys):
            raise BadRecord(f"{self._id(row)} and {self._id(other)} are the same key; remove one")

    def join(self, keys: Columns) -> None:
        """As `add`, but of a key that is there the new word counts, except that it stays revoked, and that its end only comes nearer."""
        twice = []
        for row, other in self._added(keys):
            self._joined(other, row)
            twice.append(row)
        while twice and twice[-1] == self._size:
            del self._rows[twice.pop() * _SIZE :]
            self._size -= 1
        self._twice += len(twice)

    def revoke(self, ids: Collection[str]) -> Iterator[None]:
        """Those that are there, by their ids alone: looks at every row, in steps. Of a key with several ids the last one counts."""
        # Never a part of a longer id, which numpy would cut off; nor the empty one, which is no key's.
        wanted = np.array([id_.encode() for id_ in ids if len(id_) <= ID_BYTES and good_ids([id_])], f"S{ID_BYTES}")
        for first in range(0, self._size + 1, _LOOK_ROWS):
            part = bytes(self._rows[first * _SIZE : (first + _LOOK_ROWS) * _SIZE])
            for row in np.flatnonzero(np.isin(np.frombuffer(part, _ROW)["id"], wanted)).tolist():
                self._limit(first + row, inf, REVOKED)
            yield

    def take_over(self, old: "KeyIndex", now_s: float) -> Iterator[int]:
        """All that `old` has comes here, if it is not; what was revoked or ended there is so here, too. In steps: how many came that are or will be good."""
        for some in old.rows():
            missing = []
            for row in some:
                mine = self._row(row.digest)
                if mine:
                    self._limit(mine, row.end_s, row.mask & REVOKED)
                else:
                    missing.append(row)
            if missing:
                self.join(old.columns(missing))
            yield sum(not row.mask & REVOKED and row.end_s > now_s for row in missing)

    def rows(self) -> Iterator[list[Row]]:
        """All keys, some at a time."""
        for first in range(1, self._size + 1, _STEP_ROWS):
            some = map(Row._make, _READ.iter_unpack(self._rows[first * _SIZE : (first + _STEP_ROWS) * _SIZE]))
            # Where a key has several rows, one has the last word.
            yield [row for at, row in enumerate(some, first) if not self._twice or self._row(row.digest) == at]

    def columns(self, rows: Sequence[Row]) -> Columns:
        """Of this index."""
        return Columns(
            digests=b"".join(row.digest for row in rows),
            ids=[row.id.rstrip(b"\0").decode("ascii") for row in rows],
            tenants=[self._names[row.tenant] for row in rows],
            masks=[row.mask for row in rows],
            starts_s=[row.start_s for row in rows],
            ends_s=[row.end_s for row in rows],
        )

    def _added(self, keys: Columns) -> Iterator[tuple[int, int]]:
        """Tells of each row whose key another row has already."""
        count, numbers = len(keys.ids), self._tenants
        for tenant in set(keys.tenants) - numbers.keys():
            numbers[tenant] = len(self._names)
            self._names.append(tenant)
        rows = np.empty(count, _ROW)
        rows["digest"] = np.frombuffer(keys.digests, f"V{DIGEST_BYTES}")
        rows["id"] = keys.ids
        rows["start_s"], rows["end_s"] = keys.starts_s, keys.ends_s
        rows["tenant"] = [numbers[tenant] for tenant in keys.tenants]
        rows["mask"] = keys.masks
        first = self._size + 1
        self._rows += rows.tobytes()
        self._size += count
        heads = np.frombuffer(keys.digests, "u8")[:: DIGEST_BYTES // _HEAD_BYTES].tolist()
        table, wrap = self._table, self._wrap
        for row, head in enumerate(heads, first):
            slot = head & wrap
            while other := table[slot]:
                if self._head(other) == head:
                    yield row, other
                    break
                slot = (slot + 1) & wrap
            else:
                table[slot] = row

    def _joined(self, old: int, new: int) -> None:
        """What the row `new` says of the key of row `old`."""
        before, after = self._rows[old * _SIZE : (old + 1) * _SIZE], self._rows[new * _SIZE : (new + 1) * _SIZE]
        if before[:DIGEST_BYTES] != after[:DIGEST_BYTES]:
            raise BadRecord(f"{self._id(new)} and {self._id(old)} cannot be told apart; rotate one of them")
        said = Row._make(_READ.unpack_from(before))
        if self._id(new) != self._id(old):
            self.doubles.add(self._id(new))
        self._rows[old * _SIZE : (old + 1) * _SIZE] = after
        self._limit(old, said.end_s, said.mask & REVOKED)

    def _limit(self, row: int, end_s: float, revoked: int) -> None:
        """It ends then at the latest, and is revoked if `revoked` says so."""
        at = row * _SIZE
        digest, id_, start_s, end_before_s, tenant, mask = _READ.unpack_from(self._rows, at)
        if end_s < end_before_s or revoked & ~mask:
            ends_s = min(end_s, end_before_s)
            _READ.pack_into(self._rows, at, digest, id_, start_s, ends_s, tenant, mask | revoked)

    def _row(self, digest: bytes) -> int:
        """0: it is not there. Not for what strangers send: it takes the longer, the nearer it comes."""
        head = int.from_bytes(digest[:_HEAD_BYTES], byteorder)
        slot = head & self._wrap
        while row := self._table[slot]:
            if self._rows.startswith(digest, row * _SIZE):
                return row
            slot = (slot + 1) & self._wrap
        return 0

    def find(self, digest: bytes) -> Found | None:
        head = digest[:_HEAD_BYTES]
        rows, table, wrap = self._rows, self._table, self._wrap
        slot = int.from_bytes(head, byteorder) & wrap
        while row := table[slot]:
            if rows.startswith(head, row * _SIZE):
                break
            slot = (slot + 1) & wrap
        told, id_, start_s, end_s, tenant, mask = _READ.unpack_from(rows, row * _SIZE)
        # Also where there is no row: a miss does what a hit does.
        if not compare_digest(digest, told) or not row:
            return None
        return Found(id_.rstrip(b"\0").decode("ascii"), self._names[tenant], mask, start_s, end_s)

    def _head(self, row: int) -> int:
        at = row * _SIZE
        return int.from_bytes(self._rows[at : at + _HEAD_BYTES], byteorder)

    def _id(self, row: int) -> str:
        at = row * _SIZE + DIGEST_BYTES
        return self._rows[at : at + ID_BYTES].rstrip(b"\0").decode("ascii")
