"""Which KV blocks an engine needs for which prompt chunk: the join of our text chunks with the engine's token blocks.

A block is known here by a hash of our own, chained over token ids, so that it is equal on all replicas and through restarts. Where in
the tokens a text chunk ends is estimated by its share of the prompt, rounded down; prompts that share a chunk and then differ in tokens
correct what was estimated too far. One map for each block size. Bounded; does not know replicas.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import takewhile
from typing import Final

# Chunks: about 900 bytes each with four blocks, so 60 MB; 4M tokens of distinct prompts, what some ten 80 GB machines cache.
MAX_MAPPED: Final = 65_536
ROOT: Final = 0  # before a prompt's first block


def link(parent: int, seed: bytes, tokens: bytes) -> int:
    """The chained hash of one block; `tokens`: its ids, 8 bytes each."""
    before = parent.to_bytes(8, "big") + len(seed).to_bytes(4, "big") + seed
    return int.from_bytes(blake2b(before + tokens, digest_size=8).digest(), "big")


def chain(seed: bytes, tokens: Sequence[int], block_size: int) -> list[int]:
    """The hashes of a prompt's full blocks."""
    packed, width = array("q", tokens).tobytes(), 8 * block_size
    links, last = [], ROOT
    for start in range(0, len(packed) - width + 1, width):
        last = link(last, seed, packed[start : start + width])
        links.append(last)
    return links


@dataclass(frozen=True, slots=True)
class _Need:
    """The blocks from a chunk's beginning to its end; `start`: how many come before them in the prompt."""

    start: int
    blocks: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + len(self.blocks)


class ChunkMap:
    """Chunk hash <-> blocks, both ways. A chunk is held where all its blocks are and the chunks before it are held."""

    def __init__(self, max_chunks: int = MAX_MAPPED) -> None:
        self._max_chunks = max_chunks
        self._needs: OrderedDict[int, _Need] = OrderedDict()
        self._wanted: dict[int, list[int]] = {}

    def blocks_of(self, chunk: int) -> tuple[int, ...] | None:
        """None: nobody has told yet."""
        need = self._needs.get(chunk)
        return None if need is None else need.blocks

    def chunks_with(self, block: int) -> Sequence[int]:
        return self._wanted.get(block, ())

    def knows(self, chunks: Sequence[int]) -> bool:
        return all(chunk in self._needs for chunk in chunks)

    def learn(self, chunks: Sequence[int], blocks: Sequence[int], *, chunk_tokens: float, block_size: int) -> None:
        """A prompt's chunks and its full blocks; `chunk_tokens`: how many a chunk takes. No full block: nothing is learned."""
        if not blocks:
            return
        before, anew = 0, False
        for position, chunk in enumerate(chunks, 1):
            estimate = min(len(blocks), max(1, int(position * chunk_tokens) // block_size))
            known = None if anew else self._needs.get(chunk)
            if known is None:
                need = _between(blocks, before, estimate)
            else:
                same = _shared(known, blocks)
                if same == len(known.blocks):
                    need = known
                elif same:
                    need = _Need(known.start, known.blocks[:same])
                else:
                    # Other tokens from the first chunk on: another template or tokenizer. Later: the estimate went too far.
                    anew = position == 1
                    need = _between(blocks, before, estimate if anew else before)
            self._put(chunk, need)
            before = need.end
        # Deepest first, so that shared beginnings are the youngest and the last to be forgotten.
        for chunk in reversed(chunks):
            self._needs.move_to_end(chunk)
        while len(self._needs) > self._max_chunks:
            chunk, need = self._needs.popitem(last=False)
            self._unwant(chunk, need)

    def __len__(self) -> int:
        return len(self._needs)

    def _put(self, chunk: int, need: _Need) -> None:
        before = self._needs.get(chunk)
        if before == need:
            return
        if before is not None:
            self._unwant(chunk, before)
        self._needs[chunk] = need
        for block in need.blocks:
            self._wanted.setdefault(block, []).append(chunk)

    def _unwant(self, chunk: int, need: _Need) -> None:
        for block in need.blocks:
            wanting = self._wanted[block]
            wanting.remove(chunk)
            if not wanting:
                del self._wanted[block]


def _between(blocks: Sequence[int], start: int, end: int) -> _Need:
    """At least one block: a chunk that ends within its predecessor's last block needs that one."""
    start = min(start, max(end, 1) - 1, len(blocks) - 1)
    return _Need(start, tuple(blocks[start : max(end, start + 1)]))


def _shared(need: _Need, blocks: Sequence[int]) -> int:
    """How many of the need's first blocks this prompt has at the same place."""
    here = blocks[need.start : need.end]
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(need.blocks, here, strict=False)))
