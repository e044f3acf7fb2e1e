"""What each replica's prefix cache holds, as its engine tells it block by block, and which of our chunks that makes true.

Pure, and conservative: a chunk becomes held or lost on what an engine said. What an engine held before it was heard is not known; until
then only evictions that were told count against a placement. Two copies of one block in an engine count as one, so that the first
eviction ends the belief: the next placement renews it.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from batching.kv_chunks import MAX_MAPPED, ROOT, ChunkMap, chain, link
from batching.request import ReplicaId

BlockHash = int | bytes  # the engine's own

# Blocks of one replica: about 200 bytes each, so 26 MB. 2M tokens at 16 a block; a larger cache is known by its youngest blocks.
MAX_BLOCKS: Final = 131_072
# A block size is a property of an engine; more of them than this is an engine (or an attacker) gone mad.
_MAX_BLOCK_SIZES: Final = 8


@dataclass(frozen=True, slots=True)
class Change:
    """Chunks that one replica is to be believed to hold, or no longer."""

    held: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()


NOTHING: Final = Change()


@dataclass(slots=True, eq=False)
class _View:
    """One engine's cache. `whole`: every block it holds is known. `links`: its hashes to ours.

    Evicted ones stay in `links` for a while, since a running request may go on to extend a copy.
    """

    whole: bool | None = None  # None: nothing was told yet
    block_size: int | None = None
    group: int | None = None
    links: OrderedDict[BlockHash, int] = field(default_factory=OrderedDict)
    stored: set[int] = field(default_factory=set)

    def empty(self) -> None:
        self.links.clear()
        self.stored.clear()


class KvBelief:
    """All replicas that tell; one that was not added is never heard of. Amortised O(blocks told)."""

    def __init__(self, *, max_blocks: int = MAX_BLOCKS, max_chunks: int = MAX_MAPPED) -> None:
        self._max_blocks = max_blocks
        self._max_chunks = max_chunks
        self._views: dict[ReplicaId, _View] = {}
        self._maps: dict[int, ChunkMap] = {}

    # -- what an engine tells ----------------------------------------------------------------------------------------

    def begin(self, replica: ReplicaId, *, complete: bool) -> None:
        """Before a batch. `complete`: it and those before it are all since the engine began, or since `forget`."""
        view = self._views.setdefault(replica, _View())
        if view.whole is None:
            view.whole = complete

    def stored(
        self,
        replica: ReplicaId,
        hashes: Sequence[BlockHash],
        parent: BlockHash | None,
        tokens: Sequence[int],
        block_size: int,
        *,
        seeds: Sequence[bytes],
        group: int | None = None,
    ) -> Change:
        """Full blocks, in prefix order after `parent`."""
        view = self._views[replica]
        if view.block_size is None and self._map(block_size) is not None:
            view.block_size, view.group = block_size, group
        if group != view.group:
            return NOTHING  # a hybrid model's further attention groups follow the first
        last = ROOT if parent is None else view.links.get(parent)
        if block_size != view.block_size or len(tokens) != block_size * len(hashes) or last is None:
            view.whole = False  # partial blocks, or a chain whose beginning was not told
            return NOTHING
        packed, width, told = array("q", tokens).tobytes(), 8 * block_size, []
        for index, (block, seed) in enumerate(zip(hashes, seeds, strict=True)):
            last = link(last, seed, packed[index * width : (index + 1) * width])
            view.links[block] = last
            view.links.move_to_end(block)
            view.stored.add(last)
            told.append(last)
        lost = self._trim(view)
        return Change(held=self._held(view, self._wanting(view, told)), lost=lost)

    def removed(self, replica: ReplicaId, hashes: Sequence[BlockHash], group: int | None = None) -> Change:
        """Blocks were evicted."""
        view = self._views[replica]
        if group is not None and view.group is not None and group != view.group:
            return NOTHING
        gone = []
        for block in hashes:
            ours = view.links.get(block)
            if ours is not None and ours in view.stored:
                view.stored.discard(ours)
                view.links.move_to_end(block, last=False)
                gone.append(ours)
        return Change(lost=self._wanting(view, gone))

    def cleared(self, replica: ReplicaId) -> None:
        """The cache is empty, and therefore wholly known."""
        view = self._views[replica]
        view.empty()
        view.whole = True

    def forget(self, replica: ReplicaId) -> None:
        """Events were lost, the engine began anew, or nobody listens to it any more."""
        self._views.pop(replica, None)

    # -- what we know of prompts -------------------------------------------------------------------------------------

    def lacks(self, replica: ReplicaId, chunks: Sequence[int]) -> bool:
        """Whether the tokens of these chunks are worth asking for: the replica tells, and some of them are not mapped."""
        view = self._views.get(replica)
        chunk_map = None if view is None or view.block_size is None else self._maps[view.block_size]
        return chunk_map is not None and not chunk_map.knows(chunks)

    def learn(
        self,
        replica: ReplicaId,
        chunks: Sequence[int],
        tokens: Sequence[int],
        *,
        chunk_tokens: float,
        seed: bytes = b"",
    ) -> dict[ReplicaId, Change]:
        """A prompt's token ids, as this replica's engine reads them; what that makes believed of whom.

        `chunk_tokens`: how many a chunk takes. `seed`: as of the blocks that the engine tells (an adapter's name).
        """
        view = self._views.get(replica)
        if view is None or view.block_size is None:
            return {}
        size = view.block_size
        self._maps[size].learn(chunks, chain(seed, tokens, size), chunk_tokens=chunk_tokens, block_size=size)
        return {
            name: Change(held=held)
            for name, other in self._views.items()
            if other.block_size == size and (held := self._held(other, chunks))
        }

    def settle(self, replica: ReplicaId, chunks: Sequence[int]) -> Change:
        """A request that was placed there is over, and what the engine did for it has been told: the events are right."""
        view = self._views.get(replica)
        if view is None or view.block_size is None:
            return NOTHING
        held, lost = [], []
        for chunk in chunks:
            blocks = self._maps[view.block_size].blocks_of(chunk)
            if blocks is None:
                continue
            if view.stored.issuperset(blocks):
                held.append(chunk)
            elif view.whole:
                lost.append(chunk)
        return Change(held=tuple(held), lost=tuple(lost))

    # -- looking -----------------------------------------------------------------------------------------------------

    def blocks(self, replica: ReplicaId) -> int:
        """How many it is known to hold."""
        view = self._views.get(replica)
        return 0 if view is None else len(view.stored)

    def __repr__(self) -> str:
        return f"<KvBelief {len(self._views)} replicas, {sum(map(len, self._maps.values()))} chunks mapped>"

    def _map(self, block_size: int) -> ChunkMap | None:
        if block_size not in self._maps and len(self._maps) < _MAX_BLOCK_SIZES:
            self._maps[block_size] = ChunkMap(self._max_chunks)
        return self._maps.get(block_size)

    def _trim(self, view: _View) -> tuple[int, ...]:
        """What cannot be followed is not believed."""
        gone = []
        while len(view.links) > self._max_blocks:
            _, ours = view.links.popitem(last=False)
            if ours in view.stored:
                view.stored.discard(ours)
                view.whole = False
                gone.append(ours)
        return self._wanting(view, gone)

    def _wanting(self, view: _View, blocks: Sequence[int]) -> tuple[int, ...]:
        if view.block_size is None:
            return ()
        chunk_map = self._maps[view.block_size]
        return tuple(dict.fromkeys(chunk for block in blocks for chunk in chunk_map.chunks_with(block)))

    def _held(self, view: _View, chunks: Sequence[int]) -> tuple[int, ...]:
        return tuple(chunk for chunk in chunks if self._holds(view, chunk))

    def _holds(self, view: _View, chunk: int) -> bool:
        assert view.block_size is not None
        blocks = self._maps[view.block_size].blocks_of(chunk)
        return blocks is not None and view.stored.issuperset(blocks)
