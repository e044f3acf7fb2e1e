"""The registry as a scraper asked for it: Prometheus text, or OpenMetrics where the Accept header names it.

`_created` samples are left out: they nearly double the counters' series, and nothing here reads them. Histograms, nearly all of a page,
write themselves; the rest is the library's.
"""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from metrics.histogram import Family

_END = b"# EOF\n"  # of OpenMetrics


def render(registry: CollectorRegistry, accept: str = "") -> tuple[bytes, str]:
    """(body, content type)."""
    pieces, content_type = rendering(registry, accept)
    return b"".join(pieces), content_type


def rendering(registry: CollectorRegistry, accept: str = "") -> tuple[Iterator[bytes], str]:
    """(the body, an instrument at a time; content type): whoever serves others meanwhile may do so between two pieces."""
    encode, content_type = choose_encoder(accept)
    return _pieces(registry, encode, openmetrics=content_type.startswith("application/openmetrics")), content_type


def _pieces(registry: CollectorRegistry, encode: Callable[[Collector], bytes], *, openmetrics: bool) -> Iterator[bytes]:
    for family in registry.collect():
        if isinstance(family, Family):
            yield _encoded(Metric(family.name, family.documentation, "histogram"), encode)
            yield "".join(family.lines()).encode()
        else:
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield _encoded(family, encode)
    if openmetrics:
        yield _END


def _encoded(family: Metric, encode: Callable[[Collector], bytes]) -> bytes:
    return encode(_Only(family)).removesuffix(_END)


class _Only(Collector):
    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        yield self._family
