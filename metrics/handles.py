"""A stream's instruments, looked up once per placement: a label look-up costs more than the observation it is for.

Decides nothing; holds at most `max_entries` combinations of labels, the least recently used goes first.
"""

from collections import OrderedDict
from collections.abc import Callable
from enum import StrEnum
from typing import Final, Generic, TypeVar

from metrics.catalog import Metrics
from metrics.count import Count

# 8 models x 4 classes x 128 replicas; an entry is about a kilobyte, and a miss costs one look-up, not a wrong figure.
_MAX_ENTRIES: Final = 4096
Child = TypeVar("Child")


class TokenKind(StrEnum):
    INPUT = "input"  # computed by the engine, not found in its cache
    CACHED_INPUT = "cached_input"
    OUTPUT = "output"
    REASONING = "reasoning"


class TokenSource(StrEnum):
    REPORTED = "reported"  # the engine's usage
    ESTIMATED = "estimated"  # ours: the engine did not say


class StreamHandles:
    """The instruments of one (model, service tier, replica)."""

    __slots__ = ("_counters", "_labels", "_metrics", "_tpot", "_ttft", "gaps")

    def __init__(self, metrics: Metrics, labels: tuple[str, str, str, str, str]) -> None:
        self._metrics = metrics
        self._labels = labels
        self._ttft = metrics.time_to_first_token_seconds.labels(*labels)
        self.gaps = metrics.inter_token_latency_seconds.labels(*labels)
        self._tpot = metrics.time_per_output_token_seconds.labels(*labels)
        # Most streams count two of the eight kinds and sources; the others would only be series of zeros.
        self._counters: dict[tuple[TokenKind, TokenSource], Count] = {}

    def observe_ttft(self, seconds: float) -> None:
        self._ttft.observe(seconds)

    def observe_tpot(self, seconds_per_token: float) -> None:
        self._tpot.observe(seconds_per_token)

    def add_tokens(self, count: int, kind: TokenKind, source: TokenSource) -> None:
        if count <= 0:
            return
        counter = self._counters.get((kind, source))
        if counter is None:
            counter = self._metrics.tokens_total.labels(*self._labels, kind.value, source.value)
            self._counters[kind, source] = counter
        counter.inc(count)


class Children(Generic[Child]):
    """A metric's children by their labels: one dictionary look-up instead of a check of every label. Labels are bounded already."""

    __slots__ = ("_known", "_labels")

    def __init__(self, labels: Callable[..., Child]) -> None:
        """`labels`: the metric's own method."""
        self._labels = labels
        self._known: dict[tuple[str, ...], Child] = {}

    def get(self, *values: str) -> Child:
        child = self._known.get(values)
        if child is None:
            child = self._known[values] = self._labels(*values)
        return child

    def forget(self, value: str) -> None:
        """Those with this value among their labels."""
        for values in [values for values in self._known if value in values]:
            del self._known[values]


class HandleCache:
    """StreamHandles by their labels, bounded."""

    def __init__(self, metrics: Metrics, *, max_entries: int = _MAX_ENTRIES) -> None:
        self._metrics = metrics
        self._max_entries = max_entries
        self._entries: OrderedDict[tuple[str, str, str, str, str], StreamHandles] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def forget(self, replica: str) -> None:
        for key in [key for key in self._entries if key[2] == replica]:
            del self._entries[key]

    def get(self, model: str, service_tier: str, replica: str, gpu: str, cost_tier: str) -> StreamHandles:
        """Call it at each placement; keep the result for the stream. Model names are folded already (`metrics.labels`)."""
        key = (model, service_tier, replica, gpu, cost_tier)
        handles = self._entries.get(key)
        if handles is None:
            handles = self._entries[key] = StreamHandles(self._metrics, key)
            if len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)
        else:
            self._entries.move_to_end(key)
        return handles
