"""The exporter against a collector that is slow, busy, or far away: what is sent, repeated, dropped, and said."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from config.schema import Config
from config.tracing import Tracing
from router.tracing.export import Exporter, resource_of
from router.tracing.extra import problem
from router.tracing.spans import SERVER, Span
from router.tracing.tracer import Finished
from tests.support.otlp_collector import OtlpCollector, collecting
from tests.support.patience import PATIENCE_S


@pytest.fixture
def collector() -> Iterator[OtlpCollector]:
    with collecting() as running:
        yield running


@asynccontextmanager
async def exporting(url: str, **more: Any) -> AsyncIterator[Exporter]:
    settings = Tracing.model_validate(
        {"enabled": True, "endpoint": url, "delay_s": 0.01, "batch_requests": 1, "flush_timeout_s": PATIENCE_S, **more}
    )
    exporter = Exporter(settings, "0.1", workers=1)
    exporter.start()
    yield exporter
    await exporter.close()


def finished(number: int) -> Finished:
    return Finished(number, "", False, 10**18, [Span("chat", SERVER, number, None, 0.0, 1.0, {"n": number})])


@pytest.mark.parametrize("compression", ["none", "gzip", "deflate"])
async def test_compressed_or_not(collector: OtlpCollector, compression: str) -> None:
    """The same spans arrive, their headers saying how, with what the operator adds."""
    async with exporting(collector.url, compression=compression, headers={"x-key": "k"}) as exporter:
        exporter.add(finished(7))
    (root,) = collector.roots()
    assert (root.span_id, root.attributes) == ("0000000000000007", {"n": 7})
    assert collector.exports[0]["x-key"] == "k"
    assert collector.exports[0].get("content-encoding", "none") == compression


async def test_a_busy_collector_is_asked_again(collector: OtlpCollector, caplog: pytest.LogCaptureFixture) -> None:
    """503 loses nothing."""
    collector.status = 503
    async with exporting(collector.url) as exporter:
        exporter.add(finished(1))
        await asyncio.to_thread(collector.until_exports, 1)
        collector.status = 200
        await asyncio.to_thread(collector.until, 1)
    assert len(collector.exports) >= 2
    assert "lost" not in caplog.text


async def test_what_finds_no_room_is_dropped_and_counted(
    collector: OtlpCollector, caplog: pytest.LogCaptureFixture
) -> None:
    """One export hangs, two wait; the others are dropped with one line, and the end says how many more there were."""
    caplog.set_level(logging.INFO, "penstock.tracing")
    collector.release.clear()
    async with exporting(collector.url, queue_requests=2) as exporter:
        exporter.add(finished(1))
        await asyncio.to_thread(collector.arrived.wait, PATIENCE_S)
        for number in range(2, 8):
            exporter.add(finished(number))
        collector.release.set()
    assert sorted(root.attributes["n"] for root in collector.roots()) == [1, 2, 3]
    assert [record.getMessage() for record in caplog.records] == [
        f"traces of 1 requests are dropped: 2 wait for {collector.url}/v1/traces",
        f"traces of 3 requests were not exported to {collector.url}/v1/traces",
    ]


def test_what_is_said_of_the_process() -> None:
    """The operator's attributes, and an instance for each worker."""
    settings = Tracing(resource={"deployment.environment.name": "prod", "service.instance.id": "i"}, service_name="s")
    alone, one_of_two = (resource_of(settings, "0.1", workers=workers) for workers in (1, 2))
    assert (
        alone.items() >= {"service.name": "s", "service.version": "0.1", "deployment.environment.name": "prod"}.items()
    )
    assert alone["service.instance.id"] == "i"
    assert one_of_two["service.instance.id"] == f"i:{alone['process.pid']}"


def test_a_certificate_that_is_none(tmp_path: Path) -> None:
    """Found before anything is served, with the key path."""
    bad = tmp_path / "ca.pem"
    bad.write_text("no certificate")
    for path in (bad, tmp_path / "absent"):
        said = problem(Config(tracing=Tracing(enabled=True, certificate=str(path))))
        assert said is not None
        assert said.startswith(f"tracing.certificate: {path} can't be used")
    assert problem(Config(tracing=Tracing(enabled=False, certificate=str(bad)))) is None
