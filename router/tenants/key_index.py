"""All keys by their digests, in some 90 bytes each: a million take no more than a small model's tokenizer.

Decides what a digest belongs to, not whether that may be used now. A look costs the same whether it finds something or not: a few
probes by eight bytes of a hash that nobody chooses, and exactly one comparison of whole digests, in constant time.
"""

import secrets
from array import array
from collections.abc import Sequence
from hmac import compare_digest
from struct import Struct
from sys import byteorder
from typing import Final, NamedTuple

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
    """Grows by `add`; a finished one is never changed, so that a new one can take its place at once."""

    __slots__ = ("_names", "_rows", "_size", "_table", "_tenants", "_wrap")

    def __init__(self, room: int) -> None:
        """`room`: at least as many as there will be keys."""
        size = 1 << max(4, (2 * room).bit_length())
        self._wrap = size - 1
        self._table = array("I", bytes(4 * size))  # slot -> row; 0: empty
        # Row 0 is nobody's: what is compared where nothing was found.
        self._rows = bytearray(secrets.token_bytes(DIGEST_BYTES) + bytes(_SIZE - DIGEST_BYTES))
        self._size = 0
        self._tenants: dict[str, int] = {}
        self._names: list[str] = []

    def __len__(self) -> int:
        return self._size

    def add(self, keys: Columns) -> None:
        """Many at once. Raises BadRecord where a key, or one that could not be told from it, is there already; then the index is of no use."""
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
        self._rows += rows.tobytes()
        heads = np.frombuffer(keys.digests, "u8")[:: DIGEST_BYTES // _HEAD_BYTES].tolist()
        table, wrap = self._table, self._wrap
        for row, head in enumerate(heads, self._size + 1):
            slot = head & wrap
            while other := table[slot]:
                if self._head(other) == head:
                    raise BadRecord(f"{self._id(row)} and {self._id(other)} are the same key; remove one")
                slot = (slot + 1) & wrap
            table[slot] = row
        self._size += count

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
