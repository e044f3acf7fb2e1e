"""OpenTelemetry's SDK, in the one module that imports it: finished traces to a collector over OTLP/HTTP, in a thread of its own.

Bounded: what finds no room is dropped and counted. A collector that is away is said once, and again when it is back. Spans become the
SDK's in that thread, not on the loop.
"""

import asyncio
import logging
import os
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from time import monotonic
from typing import Final

from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from config.tracing import Tracing
from router.tracing.spans import CLIENT, INTERNAL, SERVER, Span
from router.tracing.tracer import Finished

log = logging.getLogger("penstock.tracing")

_COMPLAIN_S: Final = 600.0  # about a collector that is still away, or a queue that is still full
_SDK_LOGGER: Final = "opentelemetry"
_AROUND_REASON = re.compile(r"^(Transient error|Failed to export spans batch) | encountered while exporting .*$")
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_KINDS: Final = {SERVER: SpanKind.SERVER, CLIENT: SpanKind.CLIENT, INTERNAL: SpanKind.INTERNAL}


class Exporter:
    """A `SpanSink`. `start` it in the process, and on the loop, that uses it."""

    def __init__(self, settings: Tracing, version: str, *, workers: int) -> None:
        self._settings = settings
        self._resource = resource_of(settings, version, workers=workers)
        self._scope = InstrumentationScope("penstock", version)
        self._processor: BatchSpanProcessor | None = None
        self._outlet: _Outlet | None = None
        self._hearing = _Hearing()
        self._added = 0  # requests, as the loop counts; the outlet counts those that have left
        self._dropped = _Complaint()

    def start(self) -> None:
        settings = self._settings
        self._hearing.begin()
        self._outlet = outlet = _Outlet(
            OTLPSpanExporter(
                endpoint=settings.url,
                certificate_file=settings.certificate,
                headers=settings.headers,
                timeout=settings.timeout_s,
                compression={"gzip": Compression.Gzip, "deflate": Compression.Deflate}.get(
                    settings.compression, Compression.NoCompression
                ),
            ),
            self._resource,
            self._scope,
            settings.url,
            self._hearing,
        )
        self._processor = BatchSpanProcessor(
            outlet,
            max_queue_size=settings.queue_requests
            + settings.batch_requests,  # ours is the bound, so that drops are counted
            schedule_delay_millis=settings.delay_s * 1e3,
            max_export_batch_size=settings.batch_requests,
            export_timeout_millis=settings.timeout_s * 1e3,
        )

    def add(self, finished: Finished) -> None:
        assert self._processor is not None, "started before anybody is served"
        assert self._outlet is not None
        if self._added - self._outlet.taken >= self._settings.queue_requests:
            if (count := self._dropped.due()) is not None:
                log.warning(
                    "%d requests' traces are dropped: %d wait for %s",
                    count, self._settings.queue_requests, self._settings.url,
                )  # fmt: skip
            return
        self._added += 1
        self._processor.on_end(_Carried(finished, self._resource))

    async def close(self) -> None:
        """What waits is exported, for at most `flush_timeout_s`, and not at all to a collector that is known to be away."""
        processor, outlet = self._processor, self._outlet
        if processor is None or outlet is None:
            return
        self._processor = None
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        if outlet.failing:
            outlet.shutdown()  # its repeats would only take time
        # No executor's thread: the interpreter waits for those, and would wait for a collector that does not answer.
        threading.Thread(target=_shut, args=(processor, loop, done), name="traces-end", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.flush_timeout_s):
                await done.wait()
        lost = self._added - outlet.taken + outlet.lost.count + self._dropped.count
        if lost:
            log.warning("%d requests' traces were not exported to %s", lost, self._settings.url)
        self._hearing.end()


def _shut(processor: BatchSpanProcessor, loop: asyncio.AbstractEventLoop, done: asyncio.Event) -> None:
    processor.shutdown()  # type: ignore[no-untyped-call]
    with suppress(RuntimeError):  # the loop has not waited
        loop.call_soon_threadsafe(done.set)


class _Complaint:
    """Counts what is lost; says how many when it is time to say so again."""

    def __init__(self) -> None:
        self.count = 0  # not said yet
        self._said_s: float | None = None

    def due(self, lost: int = 1) -> int | None:
        """So many more are lost: how many to speak of now; None: not yet."""
        self.count += lost
        now = monotonic()
        if self._said_s is not None and now - self._said_s < _COMPLAIN_S:
            return None
        self._said_s = now
        count, self.count = self.count, 0
        return count

    def over(self) -> None:
        """The next one is said at once."""
        self.count, self._said_s = 0, None


class _Carried(ReadableSpan):
    """All of a request, as the SDK's queue wants it: a span with a sampled context. Its thread takes it apart."""

    def __init__(self, finished: Finished, resource: Resource) -> None:
        root = finished.spans[0]
        context = SpanContext(finished.trace_id, root.span_id, is_remote=False, trace_flags=_SAMPLED)
        super().__init__(root.name, context, resource=resource)
        self.finished = finished


class _Outlet(SpanExporter):
    """In the SDK's thread: from what the loop has queued to what OTLP has, and how that went."""

    def __init__(
        self, inner: OTLPSpanExporter, resource: Resource, scope: InstrumentationScope, url: str, hearing: "_Hearing"
    ) -> None:
        self.taken = 0  # requests
        self.failing = False
        self.lost = _Complaint()
        self._inner = inner
        self._resource = resource
        self._scope = scope
        self._url = url
        self._hearing = hearing
        self._closed = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        carried = [span.finished for span in spans if isinstance(span, _Carried)]
        result = self._inner.export([span for one in carried for span in self._spans(one)])
        if result is SpanExportResult.SUCCESS:
            if self.failing:
                log.info("traces are exported to %s again", self._url)
                self.lost.over()
            self.failing = False
            return result
        self.failing = True
        if (count := self.lost.due(len(spans))) is not None:
            why = self._hearing.last or "no answer in time"
            log.warning("traces cannot be exported to %s, those of %d requests are lost: %s", self._url, count, why)
        return result

    def shutdown(self) -> None:
        if not self._closed:
            self._closed = True
            self._inner.shutdown()  # type: ignore[no-untyped-call]

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._inner.force_flush(timeout_millis)

    def _spans(self, finished: Finished) -> Iterator[ReadableSpan]:
        state = TraceState.from_header([finished.state]) if finished.state else None
        contexts = {
            span.span_id: SpanContext(finished.trace_id, span.span_id, False, _SAMPLED, state)
            for span in finished.spans
        }
        for span in finished.spans:
            yield self._span(finished, span, contexts)

    def _span(self, finished: Finished, span: Span, contexts: dict[int, SpanContext]) -> ReadableSpan:
        def ns(seconds: float) -> int:
            return finished.zero_ns + round(seconds * 1e9)

        parent = None if span.parent_id is None else contexts.get(span.parent_id)
        if parent is None and span.parent_id is not None:  # the client's
            parent = SpanContext(finished.trace_id, span.parent_id, is_remote=True, trace_flags=_SAMPLED)
        return ReadableSpan(
            span.name,
            contexts[span.span_id],
            parent,
            self._resource,
            span.attributes,
            [Event(event.name, event.attributes, ns(event.at_s)) for event in span.events],
            [Link(contexts[link.span_id], link.attributes) for link in span.links],
            _KINDS[span.kind],
            status=Status() if span.failed is None else Status(StatusCode.ERROR, span.failed),
            start_time=ns(span.start_s),
            end_time=max(ns(span.start_s), ns(span.end_s)),
            instrumentation_scope=self._scope,
        )


class _Hearing(logging.Handler):
    """What the SDK says of its exports goes into our one line about them, instead of a line each."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""
        self._propagated = True

    def begin(self) -> None:
        logger = logging.getLogger(_SDK_LOGGER)
        self._propagated, logger.propagate = logger.propagate, False
        logger.addHandler(self)

    def end(self) -> None:
        logger = logging.getLogger(_SDK_LOGGER)
        logger.removeHandler(self)
        logger.propagate = self._propagated

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if "due to timeout" not in text:  # which follows the reason, and has none
            self.last = _AROUND_REASON.sub("", text)[:300]


def resource_of(settings: Tracing, version: str, *, workers: int) -> Resource:
    """Of this process: each worker is an instance of its own."""
    host, pid = socket.gethostname(), os.getpid()
    given = settings.resource.get("service.instance.id")
    instance = f"{host}:{pid}" if given is None else given if workers == 1 else f"{given}:{pid}"
    ours: dict[str, str | int] = {
        "service.name": settings.service_name,
        "service.version": version,
        "host.name": host,
        "process.pid": pid,
        "telemetry.sdk.language": "python",
    }
    return Resource({**ours, **settings.resource, "service.instance.id": instance})
