"""What one process has learned of prefix caches and others do not know yet: kept small, and packed into digests.

A digest is a list of words, one a replica; a chunk is eight bytes in it, the hash as the index has it. Bounded: where more is learned than
can be told, the oldest is never told - others then learn it when the chunk is next used, or do without. Decides what is told first, not
when; who hears it is not known here.
"""

import struct
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from batching.request import ReplicaId

CHUNK_BYTES: Final = 8
MAX_UNTOLD: Final = (
    65_536  # chunks, about 150 bytes each: what is learned in a minute without Redis, at a thousand a second
)


class Word(msgspec.Struct, array_like=True, frozen=True):
    """Of one replica. `held`, `lost`: chunks, packed, in the order of their use. What is `forgot`, was so before the rest."""

    replica: ReplicaId
    limit: int | None  # chunks that its cache can hold, as far as the teller knows
    forgot: bool
    held: bytes
    lost: bytes


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[Word]).decode


@dataclass(slots=True, eq=False)
class _Untold:
    limit: int | None = None
    forgot: bool = False
    chunks: OrderedDict[int, bool] = field(default_factory=OrderedDict)  # whether it is held, oldest first


class PrefixJournal:
    """Of all replicas. O(chunks learned)."""

    def __init__(self, max_untold: int = MAX_UNTOLD) -> None:
        self._max_untold = max_untold
        self._replicas: OrderedDict[ReplicaId, _Untold] = OrderedDict()
        self._size = 0  # chunks, of all

    def held(self, replica: ReplicaId, chunks: Iterable[int], limit: int | None) -> None:
        """The replica has them now; the youngest last."""
        untold = self._of(replica)
        untold.limit = limit
        self._add(untold, chunks, held=True)

    def lost(self, replica: ReplicaId, chunks: Iterable[int]) -> None:
        """It has them no longer."""
        self._add(self._of(replica), chunks, held=False)

    def forgot(self, replica: ReplicaId) -> None:
        """It has nothing."""
        untold = self._of(replica)
        self._size -= len(untold.chunks)
        untold.chunks.clear()
        untold.forgot = True

    def digest(self, max_chunks: int) -> bytes:
        """The oldest of what is untold, of which every replica has a part; empty: nothing is. It counts as told from now on."""
        words, left = [], max_chunks
        for waiting in range(len(self._replicas), 0, -1):
            replica, untold = self._replicas.popitem(last=False)
            count = min(len(untold.chunks), -(-left // waiting))
            taken = [untold.chunks.popitem(last=False) for _ in range(count)]
            left -= count
            self._size -= count
            words.append(
                Word(
                    replica,
                    untold.limit,
                    untold.forgot,
                    packed([chunk for chunk, held in taken if held]),
                    packed([chunk for chunk, held in taken if not held]),
                )
            )
            if untold.chunks:  # its turn comes again, after the others'
                untold.forgot = False
                self._replicas[replica] = untold
        return _encode(words) if words else b""

    def __len__(self) -> int:
        return self._size

    def _of(self, replica: ReplicaId) -> _Untold:
        untold = self._replicas.get(replica)
        if untold is None:
            untold = self._replicas[replica] = _Untold()
        return untold

    def _add(self, untold: _Untold, chunks: Iterable[int], *, held: bool) -> None:
        before, known = len(untold.chunks), untold.chunks
        for chunk in chunks:
            known[chunk] = held
            known.move_to_end(chunk)
        self._size += len(known) - before
        while self._size > self._max_untold and known:
            known.popitem(last=False)
            self._size -= 1


def words_of(digest: bytes) -> list[Word]:
    """Raises msgspec.MsgspecError for what is no digest."""
    words = _decode(digest)
    if any(len(chunks) % CHUNK_BYTES for word in words for chunks in (word.held, word.lost)):
        raise msgspec.ValidationError("chunks of eight bytes each are wanted")
    return words


def packed(chunks: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(chunks)}Q", *chunks)


def unpacked(chunks: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(chunks) // CHUNK_BYTES}Q", chunks)
