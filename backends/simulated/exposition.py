"""An engine's figures as Prometheus text, under vLLM's names and labels. Pure."""

from collections.abc import Iterator

from backends.simulated.engine import Engine
from backends.simulated.options import EngineOptions

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# (type, name without the `vllm:` prefix, extra labels, value)
_Sample = tuple[str, str, dict[str, str], float]

_FINISH_REASONS = ("stop", "length", "abort", "error")


def exposition(engine: Engine, options: EngineOptions) -> str:
    """What GET /metrics answers."""
    lines: list[str] = []
    announced = ""
    for kind, name, extra, value in (*_gauges(engine, options), *_counters(engine)):
        family = name.removesuffix("_sum").removesuffix("_count") if kind == "summary" else name
        if family != announced:
            lines.append(f"# TYPE vllm:{family} {kind}")
            announced = family
        labels = {"engine": "0", "model_name": options.model, **extra}
        text = ",".join(f'{key}="{_escaped(label)}"' for key, label in sorted(labels.items()))
        lines.append(f"vllm:{name}{{{text}}} {float(value)}")
    return "\n".join(lines) + "\n"


def _gauges(engine: Engine, options: EngineOptions) -> Iterator[_Sample]:
    figures = engine.statistics()
    yield "gauge", "num_requests_running", {}, figures.running
    yield "gauge", "num_requests_waiting", {}, figures.waiting
    yield "gauge", "kv_cache_usage_perc", {}, figures.kv_usage_ratio  # a ratio, in spite of its name
    yield "gauge", "engine_sleep_state", {"sleep_state": "awake"}, not engine.asleep
    yield "gauge", "engine_sleep_state", {"sleep_state": "weights_offloaded"}, engine.asleep
    yield "gauge", "engine_sleep_state", {"sleep_state": "discard_all"}, 0
    info = {
        "block_size": str(options.block_size),
        "num_gpu_blocks": str(engine.kv.total_blocks),
        "kv_cache_size_tokens": str(engine.kv.total_blocks * options.block_size),
        "enable_prefix_caching": "True",
    }
    yield "gauge", "cache_config_info", info, 1


def _counters(engine: Engine) -> Iterator[_Sample]:
    figures = engine.statistics()
    yield "counter", "num_preemptions_total", {}, figures.preemptions_total
    yield "counter", "prefix_cache_queries_total", {}, figures.prefix_queries_total
    yield "counter", "prefix_cache_hits_total", {}, figures.prefix_hits_total
    yield "counter", "prompt_tokens_total", {}, figures.prompt_tokens_total
    yield "counter", "generation_tokens_total", {}, figures.generation_tokens_total
    if engine.options.speculative_tokens:  # vLLM has these only then, too
        yield "counter", "spec_decode_num_draft_tokens_total", {}, figures.draft_tokens_total
        yield "counter", "spec_decode_num_accepted_tokens_total", {}, figures.accepted_tokens_total
    for reason in _FINISH_REASONS:
        yield "counter", "request_success_total", {"finished_reason": reason}, figures.finished_total.get(reason, 0)
    # Histograms in vLLM; their sums and counts are all that is kept here.
    yield "summary", "iteration_tokens_total_count", {}, figures.iteration_total
    yield "summary", "iteration_tokens_total_sum", {}, figures.iteration_tokens_total
    yield "summary", "request_queue_time_seconds_count", {}, figures.admissions_total
    yield "summary", "request_queue_time_seconds_sum", {}, figures.queue_time_s_total


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
