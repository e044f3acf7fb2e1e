"""The offers of a whole fleet as columns of numbers, so that scoring a thousand replicas is a few dozen vector operations.

A row is read anew when its offer has changed since it was read last; who changes an offer says so. Rows are in the order of the
replicas' ids, so that the first of equals is the one with the least id. Decides nothing and writes no offer.
"""

from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from batching.offer import Offer
from batching.request import ReplicaId
from config.schema import CostTier

Column = NDArray[np.float64]
Mask = NDArray[np.bool_]
Rows = NDArray[np.intp]

_MAX_HITS: Final = 64  # prompts' beginnings whose holders are kept as a column: 8 kB each with a thousand replicas
_SPOT: Final = CostTier.SPOT  # an enum's member costs a call to look up


class Numbers(NamedTuple):
    """One column for each field of an offer by this name. Integers are exact to 2^53, and so is `UNBOUNDED`, a power of two."""

    # What tokens change; the first, so that these can be written alone: far more replicas stream than are given something.
    free_blocks: Column
    headroom_ratio: Column
    step_wait_s: Column
    chunk_s: Column
    decode_s: Column
    kv_token_s: Column
    due_s: Column
    coming_due_s: Column
    price_decode_s: Column

    open: Column
    protected_for: Column  # nan: for nobody
    epoch: Column
    empty: Column
    free_sequences: Column
    spared_sequences: Column
    free_prefill_tokens: Column
    prefill_tokens: Column
    max_model_len: Column
    longest_tokens: Column
    block_size: Column
    prefill_end_s: Column
    prefill_rest_s: Column
    chunk_tokens: Column
    token_s: Column
    weights_s: Column
    attention_s: Column
    pace_s: Column
    held_up_ratio: Column
    usd_per_s: Column
    price_factor: Column
    batch: Column
    prefix_trust_ratio: Column


_MOVING: Final = Numbers._fields.index("price_decode_s") + 1
_numbers_of: Final = attrgetter(*Numbers._fields)
_moving_of: Final = attrgetter(*Numbers._fields[:_MOVING])


class Columns:
    """`read` costs O(offers changed since the last one); where a replica came or went, all are read anew."""

    def __init__(self) -> None:
        self._by_id: dict[ReplicaId, Offer] = {}
        self._changed: set[ReplicaId] = set()
        self._moved: set[ReplicaId] = set()
        self._arranged = True
        self._rows: dict[ReplicaId, int] = {}
        self._serving: dict[str, Mask] = {}
        self._hits: dict[int, tuple[Mapping[ReplicaId, int], Column]] = {}
        self._table: Column = np.empty((len(Numbers._fields), 0))
        self._tiers: list[CostTier | None] = []
        self._shapes: list[tuple[int, int]] = []
        self.spot: Rows = np.empty(0, np.intp)  # the rows of this tier
        self.shape: tuple[int, int] | None = None  # (block size, context) where all have the same
        self.numbers = Numbers(*self._table)
        self.offers: list[Offer] = []  # of each row
        self.open: Mask = np.empty(0, np.bool_)  # as `numbers` says, and
        self.busy: Mask = np.empty(0, np.bool_)  # the contrary of `empty`
        self.zeros: Column = np.zeros(0)
        self._protected: set[int] = set()  # rows
        self.windowed: set[int] = set()  # rows whose offers have a window

    # -- what the fleet tells ----------------------------------------------------------------------------------------

    def add(self, offer: Offer) -> None:
        self._by_id[offer.replica] = offer
        self._arranged = False

    def remove(self, replica: ReplicaId) -> None:
        del self._by_id[replica]
        self._arranged = False

    def change(self, replica: ReplicaId) -> None:
        """Its offer was written."""
        self._changed.add(replica)

    def move(self, replica: ReplicaId) -> None:
        """Its streams got tokens: of its offer only what those change was written."""
        self._moved.add(replica)

    def reassign(self, model: str) -> None:
        """Others serve it than before."""
        self._serving.pop(model, None)

    # -- what placement asks -----------------------------------------------------------------------------------------

    def read(self) -> None:
        """Brings `numbers` to what the offers are now; comes before the questions below."""
        if not self._arranged:
            self._arrange()
        if self._changed:
            self._write([row for replica in self._changed if (row := self._rows.get(replica)) is not None])
            self._moved -= self._changed
            self._changed.clear()
        if self._moved:
            rows = [row for replica in self._moved if (row := self._rows.get(replica)) is not None]
            moving = [_moving_of(self.offers[row]) for row in rows]
            self._table[:_MOVING, rows] = np.array(moving, float).reshape(len(rows), _MOVING).T
            self._moved.clear()

    def grown(self, model: str, offers: Iterable[Offer], since: int) -> Mask:
        """Who serves a model and has grown since an epoch, to be read only; `offers`, all of the model, are looked at where it is not known."""
        serving = self._serving.get(model)
        if serving is None:
            serving = self._serving[model] = np.zeros(len(self.offers), np.bool_)
            serving[[self._rows[offer.replica] for offer in offers]] = True
        return serving if since < 0 else serving & (self.numbers.epoch > since)

    def spread(self, held: Mapping[ReplicaId, int]) -> Column:
        """Something that replicas have, 0 where nothing is said. The mapping must not change: its column is kept."""
        known = self._hits.get(id(held))
        if known is None or known[0] is not held:
            if len(self._hits) >= _MAX_HITS:
                self._hits.clear()
            column = np.zeros(len(self.offers))
            for replica, amount in held.items():
                if (row := self._rows.get(replica)) is not None:
                    column[row] = amount
            known = self._hits[id(held)] = held, column
        return known[1]

    @property
    def any_protected(self) -> bool:
        """Whether `protected_for` says anything."""
        return bool(self._protected)

    def of_tiers(self, tiers: frozenset[CostTier]) -> Mask:
        """Replicas of these cost tiers."""
        return np.array([tier in tiers for tier in self._tiers], np.bool_)

    def none_of(self, replicas: Iterable[ReplicaId]) -> Mask:
        """All others."""
        mask = np.ones(len(self.offers), np.bool_)
        mask[[row for replica in replicas if (row := self._rows.get(replica)) is not None]] = False
        return mask

    def check(self) -> None:
        """Raises AssertionError where a column is not what its offer says."""
        self.read()
        assert self.offers == [offer for _, offer in sorted(self._by_id.items())], "rows"
        told = np.array([_numbers_of(offer) for offer in self.offers], float).reshape(len(self.offers), -1).T
        assert not self.offers or np.array_equal(self._table, told, equal_nan=True), "columns"
        assert self.windowed == {row for row, offer in enumerate(self.offers) if offer.window is not None}, "windows"
        assert self._shapes == [(offer.block_size, offer.max_model_len) for offer in self.offers], "shapes"

    def _arrange(self) -> None:
        self.offers = [offer for _, offer in sorted(self._by_id.items())]
        self._rows = {offer.replica: row for row, offer in enumerate(self.offers)}
        self._table = np.empty((len(Numbers._fields), len(self.offers)))
        self._tiers = [None] * len(self.offers)
        self._shapes = [(0, 0)] * len(self.offers)
        self.spot = self.spot[:0]
        self.numbers = Numbers(*self._table)
        self.zeros = np.zeros(len(self.offers))
        self.open, self.busy = np.zeros((2, len(self.offers)), np.bool_)
        self._protected.clear()
        self.windowed.clear()
        self._serving.clear()
        self._hits.clear()
        self._changed.clear()
        self._moved.clear()
        self._arranged = True
        self._write(list(range(len(self.offers))))

    def _write(self, rows: list[int]) -> None:
        """All of some rows, and what is said of all of them."""
        retiered = reshaped = False
        offers = [self.offers[row] for row in rows]
        for row, offer in zip(rows, offers, strict=True):
            self.open[row], self.busy[row] = offer.open, not offer.empty
            if offer.protected_for is not None:
                self._protected.add(row)
            else:
                self._protected.discard(row)
            if offer.window is not None:
                self.windowed.add(row)
            elif self.windowed:
                self.windowed.discard(row)
            if self._tiers[row] is not offer.cost_tier:
                self._tiers[row], retiered = offer.cost_tier, True
            shape = offer.block_size, offer.max_model_len
            if self._shapes[row] != shape:
                self._shapes[row], reshaped = shape, True
        told = np.array([_numbers_of(offer) for offer in offers], float)  # None becomes nan
        self._table[:, rows] = told.reshape(len(rows), len(Numbers._fields)).T
        if retiered:
            self.spot = np.array([row for row, tier in enumerate(self._tiers) if tier is _SPOT], np.intp)
        if reshaped:
            shapes = set(self._shapes)
            self.shape = next(iter(shapes)) if len(shapes) == 1 else None
