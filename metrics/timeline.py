"""One request's life in timestamps, and what they amount to: queue time, TTFT, TPOT, end-to-end.

Pure: every moment is an argument, in seconds on one clock. A figure whose ends have not both happened is None, never 0.
Moments may come out of order (a migrated request is placed again, timers race): durations are never negative.
"""

from dataclasses import dataclass


@dataclass(init=False, slots=True)
class Timeline:
    """Marked by whoever sees the moment; all in seconds."""

    received_s: float
    queued_s: float | None
    placed_s: float | None
    sent_s: float | None
    first_token_s: float | None
    last_token_s: float | None
    finished_s: float | None
    output_tokens: int

    def __init__(self, received_s: float) -> None:
        self.received_s = received_s
        self.queued_s = None
        self.placed_s = None
        self.sent_s = None
        self.first_token_s = None
        self.last_token_s = None
        self.finished_s = None
        self.output_tokens = 0

    def on_tokens(self, count: int, now: float) -> float | None:
        """`count` tokens arrived at once. The gap since the last ones; None for the first, or for none at all."""
        if count <= 0:
            return None
        before = self.last_token_s
        self.output_tokens += count
        if before is None:
            self.first_token_s = self.last_token_s = now
            return None
        self.last_token_s = max(before, now)
        return self.last_token_s - before

    @property
    def queue_s(self) -> float | None:
        """From entering the queue (else from arrival) to the placement."""
        return _between(self.received_s if self.queued_s is None else self.queued_s, self.placed_s)

    @property
    def ttft_s(self) -> float | None:
        """From arrival to the first token: what the client waits, queue included."""
        return _between(self.received_s, self.first_token_s)

    @property
    def upstream_ttft_s(self) -> float | None:
        """From sending to the first token: what the engine takes."""
        return _between(self.sent_s, self.first_token_s)

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first; None below two tokens."""
        decode_s = _between(self.first_token_s, self.last_token_s)
        return None if decode_s is None or self.output_tokens < 2 else decode_s / (self.output_tokens - 1)

    @property
    def e2e_s(self) -> float | None:
        return _between(self.received_s, self.finished_s)


def _between(start_s: float | None, end_s: float | None) -> float | None:
    return None if start_s is None or end_s is None else max(0.0, end_s - start_s)
