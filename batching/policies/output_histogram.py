"""AIBrix's guess of how long an answer will be: drawn from what prompts of about the same length got lately."""

from collections import Counter, deque
from math import floor, log2
from random import Random
from typing import Final

WINDOW_S: Final = 240.0
SLOT_S: Final = 10.0
BUCKETS: Final = 20  # powers of two: up to 2**19 tokens, beyond which all is one
COLD_OUTPUT_TOKENS: Final = 1  # its "optimistic" default, where nothing is known


class OutputHistogram:
    """Answers by (log2 of the prompt, log2 of the output), over the last four minutes in slots of ten seconds.

    Source: vllm-project/aibrix (e3e10f9e, 2026-08-22), pkg/cache/output_predictor.go, with the sizes of cache_init.go.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._slots: deque[tuple[int, Counter[tuple[int, int]]]] = deque()
        self._counts: Counter[tuple[int, int]] = Counter()

    def add(self, prompt_tokens: int, output_tokens: int, now: float) -> None:
        """One answer was complete at `now`; what is older than the window is dropped."""
        slot = floor(now / SLOT_S)
        if not self._slots or self._slots[-1][0] < slot:
            self._slots.append((slot, Counter()))
        while self._slots[0][0] <= slot - WINDOW_S / SLOT_S:
            self._counts -= self._slots.popleft()[1]  # drops what falls to zero
        cell = bucket(prompt_tokens), bucket(output_tokens)
        self._slots[-1][1][cell] += 1
        self._counts[cell] += 1

    def predict(self, prompt_tokens: int) -> int:
        """A power of two, drawn with the frequencies seen for such prompts."""
        prompt = bucket(prompt_tokens)
        weights = [self._counts[prompt, output] for output in range(BUCKETS)]
        if not any(weights):
            return COLD_OUTPUT_TOKENS
        return int(2 ** self._random.choices(range(BUCKETS), weights)[0])


def bucket(tokens: int) -> int:
    """The nearest power of two, as its exponent."""
    return min(floor(log2(tokens) + 0.5), BUCKETS - 1) if tokens > 0 else 0
