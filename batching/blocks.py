"""Arithmetic of KV blocks: how many a request needs. One definition, used to filter, to reserve and to check."""

from typing import Final

# Stands for "no bound known" in budgets left, so that comparing stays one integer comparison.
UNBOUNDED: Final = 2**62

DEFAULT_BLOCK_SIZE: Final = 16  # tokens; vLLM's default on GPUs


def blocks_for(prompt_tokens: int, output_tokens: int, sequences: int, block_size: int) -> int:
    """Blocks of `sequences` continuations of one prompt: its full blocks are shared, each tail and its output are not."""
    shared, tail = divmod(prompt_tokens, block_size)
    return shared + sequences * -(-(tail + output_tokens) // block_size)
