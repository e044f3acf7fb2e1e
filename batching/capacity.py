"""How many sequences an engine runs, where neither config nor engine says: learned from its own queue.

Shrinks to what ran when the engine queues or preempts, grows step by step while it is full and queues nothing.
Knows nothing of KV blocks; those are either told or unbounded.
"""

from typing import Final

from batching.replica import EngineLoad
from config.gpus import gpu_table, kv_blocks

_UNKNOWN_GPU_PRIOR: Final = 32  # between what a 24 GB card and an 80 GB card hold
_TOKENS_PER_SEQUENCE: Final = 2048  # chat prompts with their answers, generously
_SMALLEST_PRIOR, _LARGEST_PRIOR = 8, 64
_GROWTH: Final = 4  # sequences a load report: overshooting leaves four in the engine's queue for one probe interval
_LARGEST: Final = 1024  # vLLM's own default on the largest GPUs


def prior_sequences(gpu: str, count: int) -> int:
    """What to assume of a machine nobody has described: its KV memory in usual conversations, within bounds."""
    if gpu not in gpu_table():
        return _UNKNOWN_GPU_PRIOR
    tokens = kv_blocks(gpu, count=count, block_size=1)
    return max(_SMALLEST_PRIOR, min(_LARGEST_PRIOR, tokens // _TOKENS_PER_SEQUENCE))


class LearnedSequences:
    """One replica's `max_num_seqs` as its behaviour shows it."""

    __slots__ = ("_preemptions", "_queued_running", "limit")

    def __init__(self, prior: int) -> None:
        self.limit = prior
        self._queued_running: int | None = None  # what ran in the last report, if that report showed a queue
        self._preemptions: int | None = None

    def observe(self, load: EngineLoad, *, ours: int) -> None:
        """Takes one fresh report; `ours` is how many sequences we have there."""
        running = ours if load.running is None else load.running
        preempted = None not in (load.preemptions_total, self._preemptions) and (
            (load.preemptions_total or 0) > (self._preemptions or 0)
        )
        if load.preemptions_total is not None:
            self._preemptions = load.preemptions_total
        if preempted:
            self._shrink(running)
        if load.waiting:
            # A queue in one report may be prompts that wait for their first step; in two running it is capacity.
            if self._queued_running is not None:
                self._shrink(max(running, self._queued_running))
            self._queued_running = running
            return
        self._queued_running = None
        if load.waiting == 0 and not preempted and ours >= self.limit:
            self.limit = min(self.limit + _GROWTH, _LARGEST)

    def _shrink(self, running: int) -> None:
        # At most halved by one report, so that one odd figure cannot idle a machine.
        self.limit = max(1, min(self.limit, max(running, self.limit // 2)))
