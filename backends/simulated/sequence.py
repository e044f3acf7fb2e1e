"""One sequence in the engine: how long it is, how far it got, what it holds. Counts only; its words are made elsewhere."""

from dataclasses import dataclass, field

from backends.simulated.kv_cache import BlockHash, BlockTable


@dataclass(slots=True, kw_only=True, eq=False)
class EngineSequence:
    """`limit_tokens` are generated (0: the prompt is only read, as for embeddings), then it ends with `finish_reason`.

    The engine alone writes the fields after `priority`.
    """

    seq_id: int
    prompt_tokens: int
    limit_tokens: int
    finish_reason: str
    block_hash: BlockHash
    priority: int = 0  # lower runs first, as in vLLM; only with priority scheduling
    rank: tuple[int, int] = (0, 0)  # (priority, arrival number): the order of admission, and backwards of preemption
    arrived_s: float = 0.0
    computed_tokens: int = 0  # whose KV is in memory
    generated_tokens: int = 0
    cached_tokens: int | None = (
        None  # prompt tokens found in the prefix cache at its first admission; None: not admitted yet
    )
    preemptions: int = 0
    table: BlockTable = field(default_factory=BlockTable)
