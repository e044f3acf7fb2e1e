"""docs/metrics.md, made from the catalog: `python -m metrics.reference > docs/metrics.md`. Decides only what the page looks like."""

import sys
from collections.abc import Iterator
from dataclasses import fields
from typing import get_args, get_type_hints

from metrics.advice import ADVICE
from metrics.aliases import ALIASES
from metrics.catalog import Metrics, Spec
from metrics.count import Counter
from metrics.histogram import Histogram
from metrics.pages import GAUGES, Across

_HEAD = """\
# Metrics

`GET /metrics` is Prometheus text, or OpenMetrics where the scraper asks for it. Generated from `metrics/catalog.py`: do not edit this page, run
`python -m metrics.reference > docs/metrics.md`.

- `service_tier` is the request's class, `cost_tier` the replica's. Latency, tokens and money carry `replica`, `gpu` and `cost_tier`.
- Every label is bounded. Models are those that replicas serve; beyond 1,000 names, and whatever a client makes up, they are `other`. A
  replica's gauges vanish with it; what was counted of it stays for an hour, and then its counters and histograms go, too
  (rates over the time before are not touched; a replica that comes back starts at 0, which Prometheus takes for a restart).
- With `--workers` every scrape answers for all workers together, whichever is asked: counters and histograms are sums, workers that have
  ended included, and a gauge is what its column *of several* says ([workers.md](workers.md)).
- Dashboards, alerts and recording rules stand beside the catalog in `metrics/`; what an autoscaler needs is in [autoscaling.md](autoscaling.md).
- Seconds of requests come from the event loop's clock, which has milliseconds; `overhead_seconds` and `routing_duration_seconds` from a finer one.
"""

_ALIASES = """
## `/metrics/vllm`: the fleet as one engine

For dashboards and KEDA queries that were written for vLLM: its own names, types and labels (`model_name`, `engine="0"`), the whole fleet as if
it were one engine. Told at no replicas, too. `penstock_*` is the stable API; these follow vLLM.

| name | type | from |
|---|---|---|
"""

_OF_SEVERAL = {
    Across.SUM: "sum",
    Across.MOST: "the most",
    Across.LEAST: "the least",
    Across.MEAN: "mean",
    Across.WHOLE: "sum, rounded up",
}


def page() -> str:
    """The whole of it."""
    return "".join([_HEAD, *_sections(), _ALIASES, *_alias_rows()])


def _sections() -> Iterator[str]:
    hints = get_type_hints(Metrics, include_extras=True)
    for title, advice in ADVICE.items():
        yield f"\n## {title}\n\n| name | type | labels | meaning | of several | what to do about it |\n|---|---|---|---|---|---|\n"
        for declared in fields(Metrics):
            if declared.name in advice:
                kind, spec = get_args(hints[declared.name])
                yield _row(declared.name, kind, spec, advice[declared.name])


def _row(name: str, kind: type, spec: Spec, advice: str) -> str:
    labels = ", ".join(f"`{label}`" for label in spec.labels) or "-"
    type_ = "histogram" if kind is Histogram else "counter" if kind is Counter else "gauge"
    several = _OF_SEVERAL[GAUGES[name]] if name in GAUGES else "sum"
    cells = (f"`{spec.prefix}{name}`", type_, labels, spec.help, several, advice)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _alias_rows() -> Iterator[str]:
    for alias in ALIASES:
        yield f"| `{alias.name}` | {alias.type} | {alias.source} |\n"


if __name__ == "__main__":
    sys.stdout.write(page())
