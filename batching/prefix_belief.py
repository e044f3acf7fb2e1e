"""What is believed of the replicas' prefix caches, for those who know better than this process' own placements: engines, other gateways.

Nothing is believed of a replica that is on its way out or has no cache now, whoever says it. That another forgot a replica is his own
finding - it may be he who cannot reach it - and counts only where it was said before this process looked for itself.
"""

from collections.abc import Mapping, Sequence

from batching.fleet import Fleet
from batching.prefix_index import MAX_CHUNKS_PER_PROMPT
from batching.prefix_journal import PrefixJournal, Word, unpacked
from batching.replica import CACHE_LOST
from batching.request import ReplicaId


class PrefixBelief:
    """Of one scheduler; kept in its fleet's index."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def journal(self) -> PrefixJournal:
        """From now on what is learned here is written down, for others."""
        journal = self._fleet.prefixes.journal = PrefixJournal()
        return journal

    def correct(self, replica: ReplicaId, *, held: Sequence[int] = (), lost: Sequence[int] = ()) -> None:
        """Its engine said that it has these prompt chunks, and those no longer."""
        if self._has_cache(replica):
            index = self._fleet.prefixes
            index.drop(replica, lost)
            for start in range(0, len(held), MAX_CHUNKS_PER_PROMPT):
                index.record(replica, held[start : start + MAX_CHUNKS_PER_PROMPT])

    def fold(self, word: Word, *, old: bool) -> None:
        """What another process learned. `old`: before this one began."""
        index, replica = self._fleet.prefixes, word.replica
        if word.forgot and old:
            index.forget(replica, heard=True)
        if self._has_cache(replica):
            index.drop(replica, unpacked(word.lost), heard=True)
            if word.held:
                index.fold(replica, unpacked(word.held), word.limit)

    def forget(self, replica: ReplicaId) -> None:
        """Its prefix cache was emptied, or is not known any more."""
        self._fleet.prefixes.forget(replica)

    def matched(self, hashes: Sequence[int]) -> Mapping[ReplicaId, int]:
        """How many of a prompt's leading chunks each replica is believed to hold."""
        return self._fleet.prefixes.match(hashes)

    def _has_cache(self, replica: ReplicaId) -> bool:
        if replica not in self._fleet:
            return False
        live = self._fleet[replica]
        return not live.retired and live.lifecycle not in CACHE_LOST
