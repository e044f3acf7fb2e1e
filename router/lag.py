"""How late the event loop wakes: the worst of the last minute, so that no scrape interval misses it and no second scraper takes it away."""

import asyncio
from collections import deque
from typing import Final

_LOOK_S: Final = 0.25  # what blocks the loop for longer is always seen, and shorter in proportion
_SPAN_S: Final = 10.0
_SPANS: Final = 6  # a minute: Prometheus' own default between two scrapes


class Lag:
    """`watch` until cancelled; then `worst_s` tells. Seconds."""

    def __init__(self) -> None:
        self._spans: deque[float] = deque([0.0], maxlen=_SPANS)
        self._since_s = 0.0

    @property
    def worst_s(self) -> float:
        return max(self._spans)

    async def watch(self) -> None:
        loop = asyncio.get_running_loop()
        self._since_s = loop.time()
        while True:
            due_s = loop.time() + _LOOK_S
            await asyncio.sleep(_LOOK_S)
            self.note(loop.time() - due_s, loop.time())

    def note(self, late_s: float, now: float) -> None:
        """A timer was so late."""
        if now - self._since_s >= _SPAN_S:
            self._since_s = now
            self._spans.append(0.0)
        self._spans[-1] = max(self._spans[-1], late_s)
