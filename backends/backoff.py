"""How long to wait before the next try: doubling, bounded, and not in step with others."""

import random


class Backoff:
    """Waits grow from `first_s` to `most_s`, each shortened by up to half at random."""

    def __init__(self, first_s: float, most_s: float) -> None:
        self._first_s = first_s
        self._most_s = most_s
        self._next_s = first_s

    def next_s(self) -> float:
        wait_s = self._next_s
        self._next_s = min(2 * self._next_s, self._most_s)
        return wait_s * random.uniform(0.5, 1.0)

    def reset(self) -> None:
        self._next_s = self._first_s
