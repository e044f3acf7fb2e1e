"""All keys by their digests, in some 90 bytes each: a million take no more than a small model's tokenizer.

Decides what a digest belongs to, not whether that may be used now. A look costs the same whether it finds something or not: a few
probes by eight bytes of a hash that nobody chooses, and exactly one comparison of whole digests, in constant time.
"""

import secrets
from array import array
from collections.abc import Iterator, Sequence
from hmac import compare_digest
from struct import Struct
from sys import byteorder
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from router.tenants.keys import DIGEST_BYTES, ID_BYTES, BadRecord

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
_STEP_ROWS: Final = 1000  # about a millisecond


class Columns(NamedTuple):
    """Keys one beside another: digests behind each other; scopes, and REVOKED; from when to when they are good, in Unix seconds."""

    digests: bytes
    ids: Sequence[str]
    tenants: Sequence[str]
    masks: Sequence[int]
    starts_s: Sequence[float]
    ends_s: Sequence[float]


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
        """As `add`, but of a key that is there the new word counts, except that it stays revoked; under two ids it is good while both are."""
        twice = []
        for row, other in self._added(keys):
            self._joined(other, row)
            twice.append(row)
        while twice and twice[-1] == self._size:
            del self._rows[twice.pop() * _SIZE :]
            self._size -= 1
        self._twice += len(twice)

    def take_over(self, old: "KeyIndex", now_s: float) -> Iterator[int]:
        """Keys of `old` that are or will be good come here, if they are not; what was revoked there is here, too. In steps: how many came."""
        for some in old.digests():
            came = 0
            for digest, mask in some:
                mine = self._row(digest)
                if not mine:
                    came += self._took(digest, old, now_s)
                elif mask & REVOKED:
                    self._set(mine, "mask", REVOKED | int(self._get(mine, "mask")))
            yield came

    def digests(self) -> Iterator[list[tuple[bytes, int]]]:
        """All, each with its scopes' bits; some at a time."""
        for first in range(1, self._size + 1, _STEP_ROWS):
            rows = np.frombuffer(bytes(self._rows[first * _SIZE : (first + _STEP_ROWS) * _SIZE]), _ROW)
            yield list(zip(rows["digest"].tolist(), rows["mask"].tolist(), strict=True))

    def _took(self, digest: bytes, old: "KeyIndex", now_s: float) -> bool:
        found = old.find(digest)
        if found is None or found.mask & REVOKED or found.ends_s <= now_s:
            return False
        self.join(Columns(digest, [found.id], [found.tenant], [found.mask], [found.not_before_s], [found.ends_s]))
        return True

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
        revoked, end_s = int(self._get(old, "mask")) & REVOKED, float(self._get(old, "end_s"))
        same = self._id(new) == self._id(old)
        if not same:
            self.doubles.add(self._id(new))
        self._rows[old * _SIZE : (old + 1) * _SIZE] = after
        self._set(old, "mask", revoked | int(self._get(old, "mask")))
        if not same:
            self._set(old, "end_s", min(end_s, float(self._get(old, "end_s"))))

    def _get(self, row: int, name: str) -> Any:
        return np.frombuffer(self._rows, _ROW, count=1, offset=row * _SIZE)[name][0]

    def _set(self, row: int, name: str, value: float) -> None:
        np.frombuffer(self._rows, _ROW, count=1, offset=row * _SIZE)[name] = value

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
