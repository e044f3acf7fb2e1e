"""One sequence in the engine: how long it is, how far it got, what it holds. Counts only; its words are made elsewhere."""

from dataclasses import dataclass, field
from typing import Final

from backends.simulated.kv_cache import BlockHash, BlockTable


class DecodeClock:
    """How many steps the sequences of one engine have decoded together."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0


STOPPED: Final = DecodeClock()  # the clock of sequences that do not decode; it never moves


@dataclass(slots=True, kw_only=True, eq=False)
class EngineSequence:
    """`limit_tokens` are generated (0: the prompt is only read, as for embeddings), then it ends with `finish_reason`.

    The engine alone writes the fields after `priority`. While `clock` runs, the sequence gets a token at each of its ticks and
    nothing is written here: its figures follow from the clock, and those of its `table` are brought up to date when it leaves.
    """

    seq_id: int
    prompt_tokens: int
    limit_tokens: int
    finish_reason: str
    block_hash: BlockHash
    priority: int = 0  # lower runs first, as in vLLM; only with priority scheduling
    rank: tuple[int, int] = (0, 0)  # (priority, arrival number): the order of admission, and backwards of preemption
    arrived_s: float = 0.0
    cached_tokens: int | None = (
        None  # prompt tokens found in the prefix cache at its first admission; None: not admitted yet
    )
    preemptions: int = 0
    lost_tokens: int = 0  # whose KV was in memory when it was last preempted
    table: BlockTable = field(default_factory=BlockTable)
    clock: DecodeClock = STOPPED
    base_tokens: int = 0  # generated, less what the clock shows
    read_tokens: int = 0  # whose KV is in memory, while the clock is stopped

    @property
    def generated_tokens(self) -> int:
        return self.base_tokens + self.clock.now

    @property
    def computed_tokens(self) -> int:
        """Whose KV is in memory; a decoding sequence lacks only its newest token's."""
        if self.clock is STOPPED:
            return self.read_tokens
        return self.prompt_tokens + self.base_tokens + self.clock.now - 1

    @property
    def total_tokens(self) -> int:
        """Prompt and what is generated so far."""
        return self.prompt_tokens + self.base_tokens + self.clock.now
