"""Which replica probably holds which prompt prefix: a bounded LRU of chained chunk hashes.

A hash covers everything before it, so a match is a walk from the first chunk until nobody is left. Belief only: it comes
from what was placed here or, as they tell, by other gateways, is corrected by what engines tell, and is forgotten with the replica, or
where more was placed since than its cache holds: engines evict the least recently used, too. Does not know tokens or engines.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from batching.prefix_journal import PrefixJournal
from batching.request import ReplicaId

# Chunks: about 150 bytes each and 100 more for every holder, so 65 to 150 MB. At 64 tokens a chunk it remembers 16M tokens of distinct prompts, the prefix
# caches of some forty 80 GB machines.
MAX_CHUNKS: Final = 262_144
# Of one prompt: a million-token prompt must not cost milliseconds a decision, nor sweep the index.
MAX_CHUNKS_PER_PROMPT: Final = 1024
_MAX_ANSWERS: Final = 64  # kept to be given again: some 100 kB each with a thousand replicas
_NOBODY: Final[Mapping[ReplicaId, int]] = {}
_ENTRIES_RATIO: Final = 4  # (replica, chunk) pairs to chunks, at most: most prompts are on one replica, few on all
# A chunk in use is told again once its replica has taken in this part of its cache since: nobody else then believes it older than by
# so much, and a prompt's beginning, which is seldom new, does not end before what follows it.
_TOLD_AGAIN_RATIO: Final = 16
_MAX_BITS: Final = 4096  # of the holders' masks: half a kilobyte; then the forgotten ones are squeezed out


class PrefixIndex:
    """`match` and `record` are O(chunks); `forget` is O(1). A chunk's holders are a bit mask, one bit a replica and life."""

    def __init__(self, max_chunks: int = MAX_CHUNKS) -> None:
        self._max_chunks = max_chunks
        self._holders: OrderedDict[int, int] = OrderedDict()
        self._held: dict[
            ReplicaId, OrderedDict[int, int]
        ] = {}  # each replica's chunks, oldest first, and `_taken` when last told
        self._taken: dict[ReplicaId, int] = {}  # how many that it did not have it has taken in
        self.journal: PrefixJournal | None = None  # of what is news to others, if anybody wants it
        self._bits: dict[ReplicaId, int] = {}  # absent: nothing of it is believed
        self._owners: dict[int, ReplicaId] = {}
        self._answers: dict[tuple[tuple[int, int], ...], dict[ReplicaId, int]] = {}  # given lately
        self._believed = 0  # all bits in `_bits`
        self._next_bit = 0
        self._entries = 0  # in `_held`, all together

    def match(self, hashes: Sequence[int], unit: int = 1) -> Mapping[ReplicaId, int]:
        """How many leading chunks each replica is believed to hold, in units; replicas that hold none are absent.

        The answer may be shared by all who ask alike, so that ten thousand that wait for a thousand replicas can keep theirs.
        """
        levels: list[tuple[int, int]] = []
        mask, depth, holders = self._believed, 0, self._holders
        for chunk in hashes[:MAX_CHUNKS_PER_PROMPT]:
            still = mask & holders.get(chunk, 0)
            if still != mask:
                if depth:
                    levels.append((mask & ~still, depth * unit))
                mask = still
                if not mask:
                    break
            depth += 1
        if mask and depth:
            levels.append((mask, depth * unit))
        return self._named(tuple(levels)) if levels else _NOBODY

    def record(self, replica: ReplicaId, hashes: Sequence[int], max_chunks: int | None = None) -> None:
        """The replica has, or is about to have, these chunks. `max_chunks`: that its cache holds; None: not known."""
        # Deepest first, so that the shared beginnings are the youngest and the last to be evicted.
        limit, chunks = self._max_chunks if max_chunks is None else max_chunks, hashes[MAX_CHUNKS_PER_PROMPT - 1 :: -1]
        if self.journal is None:
            self._take(replica, chunks, (), limit)
            return
        news = self._news(replica, chunks, limit)
        self._take(replica, chunks, news, limit)
        if news:
            self.journal.held(replica, news, max_chunks)

    def fold(self, replica: ReplicaId, chunks: Sequence[int], max_chunks: int | None = None) -> None:
        """The same by another's word, the youngest last: it is told to nobody again."""
        self._take(replica, chunks, chunks, self._max_chunks if max_chunks is None else max_chunks)

    def _news(self, replica: ReplicaId, chunks: Sequence[int], limit: int) -> Sequence[int]:
        """Those that others do not know, or may have come to believe old."""
        told = self._held.get(replica)
        if told is None:
            return chunks
        old = self._taken[replica] - limit // _TOLD_AGAIN_RATIO
        return [chunk for chunk in chunks if told.get(chunk, old - 1) < old]

    def _take(self, replica: ReplicaId, chunks: Sequence[int], told: Sequence[int], limit: int) -> None:
        """`told`: those of them that others know from now on."""
        bit = self._bits.get(replica)
        if bit is None:
            bit = self._admit(replica)
        held, holders, taken = self._held[replica], self._holders, self._taken[replica]
        before = len(held)
        for chunk in chunks:
            if chunk in held:
                held.move_to_end(chunk)
            else:
                held[chunk] = taken
            known = holders.get(chunk)
            if known is None:
                holders[chunk] = bit
                continue
            if not known & bit:
                holders[chunk] = known | bit
            holders.move_to_end(chunk)
        self._taken[replica] = taken = taken + len(held) - before
        for chunk in told:
            held[chunk] = taken
        while len(held) > limit:
            self._lose(bit, held.popitem(last=False)[0])
        self._entries += len(held) - before
        while len(holders) > self._max_chunks or self._entries > _ENTRIES_RATIO * self._max_chunks:
            self._evict_oldest()

    def drop(self, replica: ReplicaId, hashes: Iterable[int], *, heard: bool = False) -> None:
        """Its engine has evicted these chunks: what lies behind them is not matched any more either. `heard`: from another."""
        bit = self._bits.get(replica)
        if bit is None:
            return
        held = self._held[replica]
        before = len(held)
        gone = [chunk for chunk in hashes if held.pop(chunk, None) is not None]
        for chunk in gone:
            self._lose(bit, chunk)
        if gone and not heard and self.journal is not None:
            self.journal.lost(replica, gone)
        self._entries += len(held) - before

    def forget(self, replica: ReplicaId, *, heard: bool = False) -> None:
        """Its cache is gone: it went down, slept or was replaced. `heard`: from another."""
        bit = self._bits.pop(replica, None)
        if bit is not None:
            del self._owners[bit]
            del self._taken[replica]
            self._entries -= len(self._held.pop(replica))
            self._believed &= ~bit
            if not heard and self.journal is not None:
                self.journal.forgot(replica)

    def __len__(self) -> int:
        return len(self._holders)

    def __repr__(self) -> str:
        return f"<PrefixIndex {len(self)} of {self._max_chunks} chunks, {len(self._bits)} replicas>"

    def _evict_oldest(self) -> None:
        chunk, mask = self._holders.popitem(last=False)
        mask &= self._believed
        while mask:
            bit = mask & -mask
            del self._held[self._owners[bit]][chunk]
            self._entries -= 1
            mask ^= bit

    def _lose(self, bit: int, chunk: int) -> None:
        left = self._holders.get(chunk, 0) & ~bit
        if left & self._believed:
            self._holders[chunk] = left
        else:
            self._holders.pop(chunk, None)

    def _named(self, levels: tuple[tuple[int, int], ...]) -> Mapping[ReplicaId, int]:
        """(holders, what they hold) by names. Bits never change owners but in `_squeeze`, so an answer stays true."""
        known = self._answers.get(levels)
        if known is None:
            if len(self._answers) >= _MAX_ANSWERS:
                self._answers.clear()
            known = self._answers[levels] = {}
            for holders, held in levels:
                mask = holders
                while mask:
                    bit = mask & -mask
                    known[self._owners[bit]] = held
                    mask ^= bit
        return known

    def _admit(self, replica: ReplicaId) -> int:
        if self._next_bit >= _MAX_BITS + len(self._bits):
            self._squeeze()
        bit = 1 << self._next_bit
        self._next_bit += 1
        self._bits[replica] = bit
        self._owners[bit] = replica
        self._held[replica] = OrderedDict()
        self._taken[replica] = 0
        self._believed |= bit
        return bit

    def _squeeze(self) -> None:
        """Renumbers the believed bits from 0. O(chunks x holders), once in thousands of replica lives."""
        renumbered = {bit: 1 << index for index, bit in enumerate(sorted(self._owners))}
        for chunk, mask in self._holders.items():
            self._holders[chunk] = sum(new for old, new in renumbered.items() if mask & old)
        self._bits = {replica: renumbered[bit] for replica, bit in self._bits.items()}
        self._owners = {bit: replica for replica, bit in self._bits.items()}
        self._answers.clear()
        self._believed = sum(self._owners)
        self._next_bit = len(self._bits)
