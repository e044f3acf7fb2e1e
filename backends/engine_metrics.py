"""Reads an engine's load from its Prometheus page: vLLM, SGLang, TensorRT-LLM and plain Triton. Pure, and never raises.

Not a Prometheus parser: a page has hundreds of lines and is read every second for each replica, so only lines with wanted names
are looked at closely. What a page does not say stays None.
"""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFigures:
    """What one engine says of itself; figures of several data-parallel engines and models are added up."""

    running: int | None = None
    waiting: int | None = None
    kv_usage_ratio: float | None = None  # 0..1; the fullest of several
    preemptions_total: int | None = None
    prefix_queries_total: int | None = None  # tokens
    prefix_hits_total: int | None = None  # tokens
    iteration_total: int | None = None  # engine steps: stands still with requests running means a stuck engine
    asleep: bool | None = None
    kv_blocks: int | None = None
    block_size: int | None = None  # tokens


@dataclass(frozen=True, slots=True)
class _Sample:
    labels: str  # as written between the braces
    value: float


_Samples = Mapping[str, list[_Sample]]
_Series = tuple[str, str]  # name, and what its labels must contain

# In each tuple the first series that the page has is taken: today's name, older names, other engines.
_RUNNING: tuple[_Series, ...] = (
    ("vllm:num_requests_running", ""),
    ("sglang:num_running_reqs", ""),
    ("trtllm_num_requests_running", ""),
    ("nv_trt_llm_request_metrics", 'request_type="scheduled"'),
)
_WAITING: tuple[_Series, ...] = (
    ("vllm:num_requests_waiting", ""),
    ("sglang:num_queue_reqs", ""),
    ("trtllm_num_requests_waiting", ""),
    ("nv_trt_llm_request_metrics", 'request_type="waiting"'),
    ("nv_inference_pending_request_count", ""),  # Triton's own queue, before any LLM backend's
)
_KV_USAGE: tuple[_Series, ...] = (
    ("vllm:kv_cache_usage_perc", ""),
    ("vllm:gpu_cache_usage_perc", ""),  # vLLM before 0.10
    ("sglang:token_usage", ""),
    ("trtllm_kv_cache_utilization", ""),
    ("nv_trt_llm_kv_cache_block_metrics", 'kv_cache_block_type="fraction"'),
)
_PREEMPTIONS: tuple[_Series, ...] = (("vllm:num_preemptions_total", ""),)
_PREFIX_QUERIES: tuple[_Series, ...] = (
    ("vllm:prefix_cache_queries_total", ""),
    ("vllm:gpu_prefix_cache_queries_total", ""),
    ("sglang:prompt_tokens_total", ""),
)
_PREFIX_HITS: tuple[_Series, ...] = (
    ("vllm:prefix_cache_hits_total", ""),
    ("vllm:gpu_prefix_cache_hits_total", ""),
    ("sglang:cached_tokens_total", ""),
)
_ITERATIONS: tuple[_Series, ...] = (("vllm:iteration_tokens_total_count", ""),)
_AWAKE: tuple[_Series, ...] = (("vllm:engine_sleep_state", 'sleep_state="awake"'),)
_KV_BLOCKS: tuple[_Series, ...] = (
    ("trtllm_kv_cache_max_blocks", ""),
    ("nv_trt_llm_kv_cache_block_metrics", 'kv_cache_block_type="max"'),
)
_BLOCK_SIZE: tuple[_Series, ...] = (
    ("trtllm_kv_cache_tokens_per_block", ""),
    ("nv_trt_llm_kv_cache_block_metrics", 'kv_cache_block_type="tokens_per"'),
)
_CACHE_CONFIG = "vllm:cache_config_info"  # says it in labels

_SERIES = (
    _RUNNING, _WAITING, _KV_USAGE, _PREEMPTIONS, _PREFIX_QUERIES, _PREFIX_HITS, _ITERATIONS, _AWAKE, _KV_BLOCKS, _BLOCK_SIZE
)  # fmt: skip
_WANTED = frozenset(name for series in _SERIES for name, _ in series) | {_CACHE_CONFIG}
_WANTED_PREFIXES = tuple(_WANTED)
# A quoted label value may contain braces, spaces and escaped quotes; a timestamp or an exemplar may follow the value.
_LINE = re.compile(r'(?P<name>[^\s{]+)(?:\{(?P<labels>(?:[^"}]|"(?:[^"\\]|\\.)*")*)\})?[ \t]+(?P<value>\S+)')
_MAX_LINE_CHARS = 16 * 1024  # vLLM's longest line, its cache's configuration, has 1,100
_MAX_COUNT = 2**53  # beyond it a float no longer counts


def figures(text: str) -> EngineFigures:
    """The figures on a metrics page; all None for a page of something else."""
    samples = _wanted_samples(text)
    awake = _take(samples, _AWAKE, min)
    usage = _take(samples, _KV_USAGE, max)
    return EngineFigures(
        running=_count(samples, _RUNNING),
        waiting=_count(samples, _WAITING),
        kv_usage_ratio=None if usage is None else min(usage, 1.0),
        preemptions_total=_count(samples, _PREEMPTIONS),
        prefix_queries_total=_count(samples, _PREFIX_QUERIES),
        prefix_hits_total=_count(samples, _PREFIX_HITS),
        iteration_total=_count(samples, _ITERATIONS),
        asleep=None if awake is None else awake == 0,
        kv_blocks=_cache_config(samples, "num_gpu_blocks", sum) or _positive(_count(samples, _KV_BLOCKS)),
        block_size=_cache_config(samples, "block_size", max) or _positive(_count(samples, _BLOCK_SIZE, max)),
    )


def _wanted_samples(text: str) -> _Samples:
    samples: dict[str, list[_Sample]] = defaultdict(list)
    for line in text.split("\n"):
        if not line.startswith(_WANTED_PREFIXES) or len(line) > _MAX_LINE_CHARS:
            continue
        match = _LINE.match(line)
        if match is None or match["name"] not in _WANTED:
            continue
        value = _number(match["value"])
        if value is not None:
            samples[match["name"]].append(_Sample(match["labels"] or "", value))
    return samples


def _number(text: str) -> float | None:
    """A sane figure: NaN, infinities and negatives are what an engine prints that does not know."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and 0 <= value <= _MAX_COUNT else None


def _take(samples: _Samples, series: Iterable[_Series], combine: Callable[[list[float]], float]) -> float | None:
    for name, label in series:
        values = [sample.value for sample in samples.get(name, ()) if label in sample.labels]
        if values:
            return combine(values)
    return None


def _count(samples: _Samples, series: Iterable[_Series], combine: Callable[[list[float]], float] = sum) -> int | None:
    value = _take(samples, series, combine)
    return None if value is None else int(value)


def _positive(value: int | None) -> int | None:
    return value or None


def _cache_config(samples: _Samples, label: str, combine: Callable[[list[int]], int]) -> int | None:
    """A number that vLLM gives as a label, one line an engine; it prints "None" until it knows."""
    pattern = re.compile(rf'(?:^|,)\s*{label}="(\d{{1,15}})"')
    values = [int(match[1]) for sample in samples.get(_CACHE_CONFIG, ()) if (match := pattern.search(sample.labels))]
    return _positive(combine(values)) if values else None
