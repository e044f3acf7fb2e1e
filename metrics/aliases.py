"""The fleet under vLLM's own names, as if it were one engine, for dashboards and KEDA queries that were written for vLLM.

Names, types and labels are vLLM 0.32's (a test asks a real one); decides which figures of ours each of them is. Bounds of histograms are
ours: vLLM's where it is about time that clients see, else finer or coarser. What only an engine can know is left out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Literal

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from metrics.buckets import ITL_BUCKETS_S, TPOT_BUCKETS_S
from metrics.pages import Counts, Page, instruments

Type = Literal["gauge", "counter", "histogram"]


@dataclass(frozen=True, slots=True)
class Alias:
    """`name` as it is scraped; `source`: which figures it is, for docs/metrics.md; `ours`: the instrument it is summed from, if it is one."""

    name: str
    type: Type
    source: str
    ours: str = ""
    only: Mapping[str, tuple[str, ...]] | None = None  # label -> values that count


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """What the replicas of one model tell, or those of all, together."""

    waiting: int = 0  # in their own queues
    kv_usage_ratio: float = 0.0  # of all their blocks
    kv_blocks: int = 0
    block_size: int = 0  # the smallest


_REASONS: Final = {"tool_calls": "stop", "function_call": "stop", "content_filter": "stop", "other": "stop"}
_FINISHED: Final = ("stop", "length", "abort", "error", "repetition")  # vLLM's own, all told from the beginning
_BEGUN: Final = ("dispatched", "streaming")
ALIASES: Final = (
    Alias("vllm:num_requests_running", "gauge", "`requests_in_flight` with a replica, less those in its engine's own queue"),
    Alias("vllm:num_requests_waiting", "gauge", "`queue_depth` of all tiers and `replica_waiting`: our queue and the engines' own"),
    Alias("vllm:kv_cache_usage_perc", "gauge", "`replica_kv_usage_ratio`, weighted by the replicas' KV blocks"),
    Alias("vllm:cache_config_info", "gauge", "KV blocks of all replicas, the smallest `block_size` (as labels)"),
    Alias(
        "vllm:prefix_cache_queries_total", "counter", "`tokens_total`, kinds input and cached_input",
        "tokens_total", {"kind": ("input", "cached_input")},
    ),
    Alias(
        "vllm:prefix_cache_hits_total", "counter", "`tokens_total`, kind cached_input",
        "tokens_total", {"kind": ("cached_input",)},
    ),
    Alias(
        "vllm:prompt_tokens_total", "counter", "`tokens_total`, kinds input and cached_input",
        "tokens_total", {"kind": ("input", "cached_input")},
    ),
    Alias(
        "vllm:prompt_tokens_cached_total", "counter", "`tokens_total`, kind cached_input",
        "tokens_total", {"kind": ("cached_input",)},
    ),
    Alias(
        "vllm:generation_tokens_total", "counter", "`tokens_total`, kinds output and reasoning",
        "tokens_total", {"kind": ("output", "reasoning")},
    ),
    Alias(
        "vllm:request_success_total", "counter",
        "`finish_reasons_total` (tool calls are vLLM's `stop`); abort: `client_disconnects_total`; error: `stream_interruptions_total`",
    ),
    Alias("vllm:time_to_first_token_seconds", "histogram", "the same", "time_to_first_token_seconds"),
    Alias("vllm:inter_token_latency_seconds", "histogram", "the same, in vLLM's buckets", "inter_token_latency_seconds"),
    Alias(
        "vllm:request_time_per_output_token_seconds", "histogram", "`time_per_output_token_seconds`",
        "time_per_output_token_seconds",
    ),
    Alias("vllm:e2e_request_latency_seconds", "histogram", "`request_duration_seconds`", "request_duration_seconds"),
    Alias(
        "vllm:request_queue_time_seconds", "histogram", "`queue_wait_seconds`, outcome dispatched",
        "queue_wait_seconds", {"outcome": ("dispatched",)},
    ),
    Alias("vllm:request_prompt_tokens", "histogram", "`prompt_length_tokens`", "prompt_length_tokens"),
    Alias("vllm:request_generation_tokens", "histogram", "`output_length_tokens`", "output_length_tokens"),
)  # fmt: skip


class FleetAsEngine(Collector):
    """`page`: everybody's figures. `engines`: of every model that is told, served now or not; all aliases are told of each. `whole`: of all replicas."""

    def __init__(self, page: Page, engines: Mapping[str, Engines], whole: Engines) -> None:
        self._whole = whole
        self._page = page
        self._labels, self._bounds = {}, {}
        for name, spec in instruments():
            self._labels[name], self._bounds[name] = spec.labels, spec.buckets or ()
        self._engines = engines

    def collect(self) -> Iterable[Metric]:
        for alias in ALIASES:
            if alias.type == "histogram":
                yield self._histogram(alias)
            elif alias.name == "vllm:cache_config_info":
                yield self._cache_config(alias)
            elif alias.name == "vllm:request_success_total":
                yield self._success(alias)
            elif alias.type == "counter":
                yield self._family(CounterMetricFamily, alias, self._sums(alias.ours, alias.only))
            else:
                yield self._family(GaugeMetricFamily, alias, self._gauge(alias.name))

    # -- one kind each -----------------------------------------------------------------------------------------------

    def _gauge(self, name: str) -> Mapping[str, float]:
        engines = self._engines.items()
        if name == "vllm:kv_cache_usage_perc":
            return {model: engine.kv_usage_ratio for model, engine in engines}
        if name == "vllm:num_requests_waiting":
            queued = self._sums("queue_depth")
            return {model: queued.get(model, 0.0) + engine.waiting for model, engine in engines}
        sent = self._sums("requests_in_flight", {"phase": _BEGUN})
        return {model: max(0.0, sent.get(model, 0.0) - engine.waiting) for model, engine in engines}

    def _family(
        self, kind: type[CounterMetricFamily | GaugeMetricFamily], alias: Alias, values: Mapping[str, float]
    ) -> Metric:
        family = kind(alias.name, alias.source, labels=("model_name", "engine"))
        for model in self._engines:
            family.add_metric((model, "0"), values.get(model, 0.0))
        return family

    def _cache_config(self, alias: Alias) -> Metric:
        """Which tells no model: an engine has one."""
        family = GaugeMetricFamily(alias.name, alias.source, labels=("engine", "block_size", "num_gpu_blocks"))
        if self._whole.kv_blocks:
            family.add_metric(("0", str(self._whole.block_size), str(self._whole.kv_blocks)), 1.0)
        return family

    def _success(self, alias: Alias) -> Metric:
        found = {(model, reason): 0.0 for model in self._engines for reason in _FINISHED}
        for labels, value in self._page.counters.get("finish_reasons_total", {}).items():
            model, reason = labels
            if (key := (model, _REASONS.get(reason, reason))) in found:
                found[key] += value
        for reason, sums in (
            ("abort", self._sums("client_disconnects_total", {"phase": _BEGUN})),
            ("error", self._sums("stream_interruptions_total", {"action": ("errored",)})),
        ):
            for model in self._engines:
                found[model, reason] += sums.get(model, 0.0)
        family = CounterMetricFamily(alias.name, alias.source, labels=("model_name", "engine", "finished_reason"))
        for (model, reason), value in found.items():
            family.add_metric((model, "0", reason), value)
        return family

    def _histogram(self, alias: Alias) -> Metric:
        bounds = (*self._bounds[alias.ours], float("inf"))
        shown = (*TPOT_BUCKETS_S, float("inf")) if self._bounds[alias.ours] == ITL_BUCKETS_S else bounds
        family = HistogramMetricFamily(alias.name, alias.source, labels=("model_name", "engine"))
        sums = self._histograms(alias)
        for model in self._engines:
            counts = sums.get(model) or Counts([0] * len(bounds), 0.0)
            cumulated = dict(zip(bounds, accumulate(counts.buckets), strict=True))
            buckets = [(str(floatToGoString(bound)), float(cumulated[bound])) for bound in shown]  # type: ignore[no-untyped-call]
            family.add_metric((model, "0"), buckets, counts.total)
        return family

    # -- sums by model -----------------------------------------------------------------------------------------------

    def _sums(self, name: str, only: Mapping[str, tuple[str, ...]] | None = None) -> dict[str, float]:
        found: dict[str, float] = {}
        part = self._page.counters.get(name) or self._page.gauges.get(name) or {}
        for model, labels in self._counted(name, part, only):
            found[model] = found.get(model, 0.0) + part[labels]
        return found

    def _histograms(self, alias: Alias) -> dict[str, Counts]:
        found: dict[str, Counts] = {}
        part = self._page.histograms.get(alias.ours, {})
        for model, labels in self._counted(alias.ours, part, alias.only):
            counts = part[labels]
            if (sum_ := found.get(model)) is None:
                found[model] = Counts(list(counts.buckets), counts.total)
            else:
                sum_.buckets = [a + b for a, b in zip(sum_.buckets, counts.buckets, strict=True)]
                sum_.total += counts.total
        return found

    def _counted(
        self, name: str, part: Iterable[tuple[str, ...]], only: Mapping[str, Sequence[str]] | None
    ) -> Iterator[tuple[str, tuple[str, ...]]]:
        names = self._labels[name]
        at = names.index("model")
        wanted = [(names.index(label), values) for label, values in (only or {}).items()]
        for labels in part:
            if all(labels[place] in values for place, values in wanted):
                yield labels[at], labels
