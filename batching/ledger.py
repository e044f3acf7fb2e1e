"""What one replica owes: sequences, prefill tokens and KV blocks of every live lease, and their sums.

Invariant: each sum equals that of the live leases (`check`), and a lease leaves exactly once. Decides nothing: whether a
lease may be opened is placement's business.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from batching.audit import Forecast
from batching.blocks import UNBOUNDED, blocks_for
from batching.request import ServiceTier
from batching.ticket import Lease, LeaseId

if TYPE_CHECKING:
    from batching.estimators import KnownLength, Lengths


_BATCH: Final = ServiceTier.BATCH  # an enum's member costs a call to look up


class Counts(NamedTuple):
    """One replica's tokens, ever, and what is held there now."""

    emitted_tokens: int
    computed_tokens: int
    held_blocks: int


@dataclass(init=False, slots=True, eq=False)
class LeaseRecord:
    """One lease as the ledger keeps it."""

    lease: Lease
    placed_s: float
    rank: int  # of the queue it left: where its tokens are charged
    block_size: int
    prefill_tokens: int  # uncached prompt, outstanding until the first token
    believed_cached_tokens: int  # of the prompt, by the prefix index alone
    forecast_tokens: int  # output per sequence that is reserved; grows with what was emitted
    ttft_s: float  # predicted
    tpot_s: float  # predicted
    forecast: Forecast | None  # what is to be judged after the end; None: another rule decided
    prefill_s: float  # of the machine, for the uncached prompt; outstanding until the first token
    lengths: "Lengths | KnownLength | None"  # what is known of how long such answers get
    output_bound: int  # tokens per sequence that the client or the context allows
    alone: bool  # nothing else was to be prefilled when it was placed: its first token tells the machine's speed
    steps_before: int  # of the engine, when its first token came
    emitted_tokens: int  # all sequences together
    charged_tokens: int  # of those, the ones the tenant was charged for
    first_token_s: float | None
    last_token_s: float | None
    held_blocks: int
    reserved_blocks: int
    sized_to: int  # tokens emitted up to which none of these change
    weight: int  # by which it pays for the replica (`batching.meter`), and since when it has not been billed
    since_usd_per_weight: float

    def __init__(
        self,
        lease: Lease,
        placed_s: float,
        rank: int,
        block_size: int,
        prefill_tokens: int,
        believed_cached_tokens: int,
        forecast_tokens: int,
        ttft_s: float,
        tpot_s: float,
        forecast: Forecast | None = None,
        prefill_s: float = 0.0,
        lengths: "Lengths | KnownLength | None" = None,
        output_bound: int = UNBOUNDED,
        alone: bool = False,
    ) -> None:
        self.lease = lease
        self.placed_s = placed_s
        self.rank = rank
        self.block_size = block_size
        self.prefill_tokens = prefill_tokens
        self.believed_cached_tokens = believed_cached_tokens
        self.forecast_tokens = forecast_tokens
        self.ttft_s = ttft_s
        self.tpot_s = tpot_s
        self.forecast = forecast
        self.prefill_s = prefill_s
        self.lengths = lengths
        self.output_bound = output_bound
        self.alone = alone
        self.steps_before = 0
        self.emitted_tokens = 0
        self.charged_tokens = 0
        self.first_token_s = None
        self.last_token_s = None
        self.held_blocks = 0
        self.reserved_blocks = 0
        self.sized_to = 0
        self.weight = 0
        self.since_usd_per_weight = 0.0

    @property
    def emitted_per_sequence(self) -> int:
        return -(-self.emitted_tokens // self.lease.request.sequences)

    @property
    def held_tokens(self) -> int:
        return self.lease.request.prompt_tokens + self.emitted_tokens

    def size(self) -> None:
        """Blocks from tokens; never fewer reserved than held."""
        request, size = self.lease.request, self.block_size
        prompt, sequences = request.prompt_tokens, request.sequences
        if sequences == 1:  # as below
            emitted = self.emitted_tokens
            if emitted > self.forecast_tokens:
                self.forecast_tokens = emitted
            self.held_blocks = held = -(-(prompt + emitted) // size)
            self.reserved_blocks = -(-(prompt + self.forecast_tokens) // size)
            self.sized_to = min(held * size - prompt, self.forecast_tokens)
            return
        emitted = self.emitted_per_sequence
        self.forecast_tokens = max(self.forecast_tokens, emitted)
        self.held_blocks = blocks_for(prompt, emitted, sequences, size)
        self.reserved_blocks = blocks_for(prompt, self.forecast_tokens, sequences, size)


class Ledger:
    """All operations O(1) but `rebase` and `check`."""

    __slots__ = (
        "_ended_tokens",
        "batch_prefill_tokens",
        "computed_tokens",
        "held_blocks",
        "held_tokens",
        "leases",
        "prefill_s",
        "prefill_tokens",
        "reserved_blocks",
        "sequences",
    )

    def __init__(self) -> None:
        self.leases: dict[LeaseId, LeaseRecord] = {}
        self.sequences = 0
        self.prefill_tokens = 0
        self.batch_prefill_tokens = 0  # of them, those that nobody watches
        self.prefill_s = 0.0
        self.held_tokens = 0
        self.held_blocks = 0
        self.reserved_blocks = 0
        self.computed_tokens = 0  # of prompts, prefilled ever; what was found in a cache is left out
        self._ended_tokens = 0  # with `held_tokens`: what was ever emitted, at no cost a token

    @property
    def emitted_tokens(self) -> int:
        """Output ever, of what runs and of what has ended; never falls."""
        return self.held_tokens + self._ended_tokens

    def counts(self) -> Counts:
        return Counts(self.emitted_tokens, self.computed_tokens, self.held_blocks)

    def open(self, record: LeaseRecord) -> None:
        lease = record.lease
        assert lease.id not in self.leases
        record.size()
        self.leases[lease.id] = record
        self.sequences += lease.request.sequences
        self._add(record, 1)

    def prefilled(self, record: LeaseRecord) -> None:
        """Its first token is out: the prompt no longer stands in anybody's way."""
        self.prefill_tokens -= record.prefill_tokens
        self.computed_tokens += record.prefill_tokens
        if record.lease.request.service_tier is _BATCH:
            self.batch_prefill_tokens -= record.prefill_tokens
        record.prefill_tokens = 0
        self.prefill_s = max(0.0, self.prefill_s - record.prefill_s) if self.prefill_tokens else 0.0
        record.prefill_s = 0.0

    def grow(self, record: LeaseRecord, emitted_tokens: int) -> bool:
        """Whether a block boundary was crossed. Counts only rise: a late report of fewer tokens changes nothing."""
        more = emitted_tokens - record.emitted_tokens
        if more <= 0:
            return False
        self.held_tokens += more
        if emitted_tokens <= record.sized_to:
            record.emitted_tokens = emitted_tokens
            return False
        before = record.held_blocks
        self.held_blocks -= record.held_blocks
        self.reserved_blocks -= record.reserved_blocks
        record.emitted_tokens = emitted_tokens
        record.size()
        self.held_blocks += record.held_blocks
        self.reserved_blocks += record.reserved_blocks
        return record.held_blocks != before

    def completed(self, record: LeaseRecord, output_tokens: int) -> None:
        """What nobody told while it ran is counted before it is closed: prompts without a first token, an answer that came at once."""
        self.computed_tokens += record.prefill_tokens
        self._ended_tokens += max(0, output_tokens - record.emitted_tokens)

    def close(self, lease_id: LeaseId) -> LeaseRecord | None:
        """Gives everything back; None if it has been given back before."""
        record = self.leases.pop(lease_id, None)
        if record is not None:
            self.sequences -= record.lease.request.sequences
            self._add(record, -1)
        return record

    def rebase(self, block_size: int) -> None:
        """The engine's block size became known or changed."""
        self.held_blocks = self.reserved_blocks = 0
        for record in self.leases.values():
            record.block_size = block_size
            record.size()
            self.held_blocks += record.held_blocks
            self.reserved_blocks += record.reserved_blocks

    def check(self) -> None:
        """Raises AssertionError unless every sum is that of the live leases."""
        records = self.leases.values()
        assert self.sequences == sum(r.lease.request.sequences for r in records), "sequences"
        assert self.prefill_tokens == sum(r.prefill_tokens for r in records), "prefill_tokens"
        batch = [r for r in records if r.lease.request.service_tier is _BATCH]
        assert self.batch_prefill_tokens == sum(r.prefill_tokens for r in batch), "batch_prefill_tokens"
        assert self.held_tokens == sum(r.held_tokens for r in records), "held_tokens"
        assert self.held_blocks == sum(r.held_blocks for r in records), "held_blocks"
        assert self.reserved_blocks == sum(r.reserved_blocks for r in records), "reserved_blocks"
        assert all(r.reserved_blocks >= r.held_blocks for r in records), "reserved < held"

    def __repr__(self) -> str:
        return (
            f"<Ledger {len(self.leases)} leases, {self.sequences} sequences, {self.prefill_tokens} prefill tokens, "
            f"{self.held_blocks} held and {self.reserved_blocks} reserved blocks>"
        )

    def _add(self, record: LeaseRecord, sign: int) -> None:
        request = record.lease.request
        if record.prefill_tokens:
            self.prefill_tokens += sign * record.prefill_tokens
            if request.service_tier is _BATCH:
                self.batch_prefill_tokens += sign * record.prefill_tokens
        # A sum of floats that must not creep: nothing outstanding is exactly nothing.
        self.prefill_s = max(0.0, self.prefill_s + sign * record.prefill_s) if self.prefill_tokens else 0.0
        tokens = sign * (request.prompt_tokens + record.emitted_tokens)
        self.held_tokens += tokens
        self._ended_tokens -= tokens
        self.held_blocks += sign * record.held_blocks
        self.reserved_blocks += sign * record.reserved_blocks
