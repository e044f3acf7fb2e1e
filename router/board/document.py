"""What the board, `penstock top` and `GET /admin/live` are told: the shape, and nothing of how it comes about.

The first event of a stream is `Live` with every replica; each later one, a second apart, has in `replicas` only those whose card has
changed, and in `gone` those that are no longer there; of pulses and placements it has the new ones, and those placements again whose
end is known since (`request_id`, `unix_s` and `replica` tell one from another). Everything else is always whole. An event may be whole
at any time. Times are seconds, `*_unix_s` on a clock of the gateway's that agrees with the document's own `unix_s`: what is left until
a deadline is their difference. None: nobody knows. Sizes are KV blocks unless the name says tokens.
"""

import msgspec

VERSION = 1


class ReplicaCard(msgspec.Struct, kw_only=True, frozen=True, gc=False):
    """One replica now."""

    name: str
    models: tuple[str, ...]
    backend: str  # vllm, openai, triton, simulated
    gpu: str
    gpus: int
    cost_tier: str
    usd_per_hour: float
    on_demand_usd_per_hour: float | None = None  # the same machine's, where somebody has said it
    lifecycle: str
    why: str = ""  # it is in that state
    reason: str | None = None  # of a drain or notice: drain, reclaim, maintenance, rebalance
    deadline_unix_s: float | None = None
    circuit: str = "closed"  # closed, half_open, open
    running: int  # sequences of ours
    max_num_seqs: int | None = None
    waiting: int | None = None  # in the engine's own queue, as it says
    kv_blocks: int | None = None
    block_size: int | None = None
    held_blocks: int = 0  # by what has been said so far
    reserved_blocks: int = 0  # held, and what running answers are expected to grow by
    foreign_blocks: int = 0  # the engine's figure beyond ours
    kv_usage_ratio: float | None = None  # the engine's own word
    output_tokens_per_s: float = 0.0  # over the last seconds
    input_tokens_per_s: float = 0.0  # prompt tokens computed, cached ones left out
    usd_per_million_output_tokens: float | None = None  # at that rate
    figures_age_s: float | None = (
        None  # of what the engine says, in steps of five seconds: a card changes only with news
    )


class QueueRow(msgspec.Struct, kw_only=True, frozen=True):
    """What waits of one model, service tier and tenant; tenants under their pseudonyms."""

    model: str
    service_tier: str
    tenant: str
    depth: int
    tokens: int
    oldest_s: float


class Pulse(msgspec.Struct, kw_only=True, frozen=True):
    """One second of the whole fleet; None: nothing to tell of."""

    unix_s: float
    ttft_p50_s: float | None = None
    ttft_p95_s: float | None = None
    itl_p50_s: float | None = None
    itl_p95_s: float | None = None
    output_tokens: int = 0
    requests: int = 0  # ended
    errors: int = 0  # of those
    queue_depth: int = 0
    kv_used_ratio: float | None = None  # held over all blocks


class Money(msgspec.Struct, kw_only=True, frozen=True):
    """What the fleet costs now, and what it would if every machine were paid on demand."""

    usd_per_hour: float = 0.0
    on_demand_usd_per_hour: float | None = None  # None: of some machine nobody has said its on-demand price
    busy_usd_per_hour: float = 0.0  # of it, by machines on which something ran in the last seconds
    usd_per_million_output_tokens: float | None = None  # over the last minute


class Candidate(msgspec.Struct, kw_only=True, frozen=True):
    """One replica that a placement looked at."""

    replica: str
    usd: float
    ttft_s: float
    tpot_s: float
    cached_tokens: int
    headroom_blocks: int | None
    meets: bool  # the objective


class PlacementLine(msgspec.Struct, kw_only=True, frozen=True):
    """One of the last placements, newest first."""

    request_id: str
    unix_s: float
    model: str
    service_tier: str
    replica: str
    cost_tier: str
    reason: str  # prefix_hit, cost, kv_headroom, fallback
    formula: str  # the placement's own words
    queued_s: float
    candidates: tuple[Candidate, ...] = ()  # the chosen one first
    outcome: str | None = None  # None: it runs
    ttft_s: float | None = None  # from the request's arrival, its queue included


class Live(msgspec.Struct, kw_only=True, frozen=True):
    """One event."""

    version: int = VERSION
    whole: bool  # every replica is here: forget what you knew
    unix_s: float
    started_unix_s: float
    penstock: str  # the release
    draining: bool = False
    workers: int = 1
    replicas: tuple[ReplicaCard, ...] = ()
    gone: tuple[str, ...] = ()
    queue: tuple[QueueRow, ...] = ()
    pulses: tuple[Pulse, ...] = ()  # the whole: up to two minutes, oldest first; later: those since the last event
    money: Money = Money()
    placements: tuple[PlacementLine, ...] = ()  # the whole: the last twenty; later: of them, those with news
