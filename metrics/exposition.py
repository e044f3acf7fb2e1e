"""The registry as a scraper asked for it: Prometheus text, or OpenMetrics where the Accept header names it.

`_created` samples are left out: they nearly double the counters' series, and nothing here reads them.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


def render(registry: CollectorRegistry, accept: str = "") -> tuple[bytes, str]:
    """(body, content type)."""
    encode, content_type = choose_encoder(accept)
    return encode(_WithoutCreated(registry)), content_type


class _WithoutCreated(Collector):
    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterable[Metric]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family
