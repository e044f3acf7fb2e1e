"""All keys by their digests, in some 80 bytes each: a million take no more than a small model's tokenizer.

Decides what a digest belongs to, not whether that may be used now. A look costs the same whether it finds something or not: a few
probes by eight bytes of a hash that nobody chooses, and exactly one comparison of whole digests, in constant time.
"""

import secrets
from array import array
from collections.abc import Sequence
from hmac import compare_digest
from sys import byteorder
from typing import Final, NamedTuple

from router.tenants.keys import DIGEST_BYTES, ID_BYTES, BadRecord

REVOKED: Final = 0x80  # beside the scopes' bits


class Columns(NamedTuple):
    """Keys one beside another: digests behind each other; scopes, and REVOKED; from when to when they are good, in Unix seconds."""

    digests: bytes
    ids: Sequence[str]
    tenants: Sequence[str]
    masks: Sequence[int]
    starts_s: Sequence[float]
    ends_s: Sequence[float]


class Found(NamedTuple):
    """What is known of a key. Times in Unix seconds."""

    id: str
    tenant: str
    mask: int
    not_before_s: float
    ends_s: float
    revoked: bool


class KeyIndex:
    """Grows by `add`; a finished one is never changed, so that a new one can take its place at once."""

    __slots__ = (
        "_digests", "_ends", "_heads", "_ids", "_masks", "_names", "_starts", "_table", "_tenant_of", "_tenants", "_wrap",
    )  # fmt: skip

    def __init__(self, room: int) -> None:
        """`room`: at least as many as there will be keys."""
        size = 1 << max(4, (2 * room).bit_length())
        self._wrap = size - 1
        self._table = array("I", bytes(4 * size))  # slot -> row; 0: empty
        # Row 0 is nobody's: what is compared where nothing was found.
        self._digests = bytearray(secrets.token_bytes(DIGEST_BYTES))
        self._heads = array("Q", [0])
        self._ids = bytearray(ID_BYTES)
        self._masks = array("B", [0])
        self._starts = array("d", [0.0])
        self._ends = array("d", [0.0])
        self._tenant_of = array("I", [0])
        self._tenants: dict[str, int] = {}
        self._names: list[str] = []

    def __len__(self) -> int:
        return len(self._heads) - 1

    def add(self, keys: Columns) -> None:
        """Many at once. Raises BadRecord where a key, or one that could not be told from it, is there already; then the index is of no use."""
        heads, first, numbers = self._heads, len(self._heads), self._tenants
        heads.extend(memoryview(keys.digests).cast("Q")[:: DIGEST_BYTES // 8])
        self._digests += keys.digests
        self._ids += "".join([id_.ljust(ID_BYTES, "\0") for id_ in keys.ids]).encode("ascii")
        self._masks.extend(keys.masks)
        self._starts.extend(keys.starts_s)
        self._ends.extend(keys.ends_s)
        for tenant in set(keys.tenants) - numbers.keys():
            numbers[tenant] = len(self._names)
            self._names.append(tenant)
        self._tenant_of.extend([numbers[tenant] for tenant in keys.tenants])
        table, wrap = self._table, self._wrap
        for row, head in enumerate(heads[first:], first):
            slot = head & wrap
            while other := table[slot]:
                if heads[other] == head:
                    raise BadRecord(f"{self._id(row)} and {self._id(other)} are the same key; remove one")
                slot = (slot + 1) & wrap
            table[slot] = row

    def find(self, digest: bytes) -> Found | None:
        head = int.from_bytes(digest[:8], byteorder)
        table, heads, wrap = self._table, self._heads, self._wrap
        slot = head & wrap
        while (row := table[slot]) and heads[row] != head:
            slot = (slot + 1) & wrap
        at = DIGEST_BYTES * row
        # Also where there is no row: a miss does what a hit does.
        same = compare_digest(digest, self._digests[at : at + DIGEST_BYTES])
        return self._found(row) if same and row else None

    def _found(self, row: int) -> Found:
        mask = self._masks[row]
        return Found(
            self._id(row),
            self._names[self._tenant_of[row]],
            mask & ~REVOKED,
            self._starts[row],
            self._ends[row],
            bool(mask & REVOKED),
        )

    def _id(self, row: int) -> str:
        return self._ids[ID_BYTES * row : ID_BYTES * (row + 1)].rstrip(b"\0").decode("ascii")
