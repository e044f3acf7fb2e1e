"""Finished traces to a collector: OpenTelemetry's batching, in a thread of its own, and OTLP over HTTP. Loaded only where traces are on.

Bounded: what finds no room is dropped and counted. A collector that is away is said once, and again when it is back. Spans are written
as OTLP in that thread, not on the loop.
"""

import asyncio
import gzip
import logging
import os
import socket
import ssl
import threading
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import Final

import httpx
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, TraceFlags

from config.tracing import Tracing
from router.tracing.otlp import request
from router.tracing.spans import Value
from router.tracing.tracer import Finished

log = logging.getLogger("penstock.tracing")

_COMPLAIN_S: Final = 600.0  # about a collector that is still away, or a queue that is still full
_REPEATED: Final = frozenset({429, 502, 503, 504})  # by OTLP's specification
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 5.0  # before an export is repeated; doubles
_SAMPLED: Final = TraceFlags(TraceFlags.SAMPLED)
_NOTHING: Final = Resource({})
_COMPRESS: Final[dict[str, Callable[[bytes], bytes]]] = {"gzip": gzip.compress, "deflate": zlib.compress}


class Exporter:
    """A `SpanSink`. `start` it in the process, and on the loop, that uses it."""

    def __init__(self, settings: Tracing, version: str, *, workers: int) -> None:
        self._settings = settings
        self._outlet = _Outlet(settings, version, workers=workers)
        self._processor: BatchSpanProcessor | None = None
        self._added = 0  # requests, as the loop counts; the outlet counts those that have left
        self._dropped = _Complaint()

    def start(self) -> None:
        settings = self._settings
        self._outlet.open()
        self._processor = BatchSpanProcessor(
            self._outlet,
            # Ours is the bound, so that drops are counted.
            max_queue_size=settings.queue_requests + settings.batch_requests,
            schedule_delay_millis=settings.delay_s * 1e3,
            max_export_batch_size=settings.batch_requests,
            export_timeout_millis=settings.timeout_s * 1e3,
        )

    def add(self, finished: Finished) -> None:
        assert self._processor is not None, "started before anybody is served"
        settings = self._settings
        if self._added - self._outlet.taken >= settings.queue_requests:
            if (count := self._dropped.due()) is not None:
                waiting = settings.queue_requests
                log.warning("traces of %d requests are dropped: %d wait for %s", count, waiting, settings.url)
            return
        self._added += 1
        self._processor.on_end(_Carried(finished))

    async def close(self) -> None:
        """What waits is exported, for at most `flush_timeout_s`, and not at all to a collector that is known to be away."""
        processor, self._processor = self._processor, None
        if processor is None:
            return
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        if self._outlet.failing:
            self._outlet.give_up()
        # No executor's thread: the interpreter waits for those, and would wait for a collector that does not answer.
        threading.Thread(target=_shut, args=(processor, loop, done), name="traces-end", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._settings.flush_timeout_s):
                await done.wait()
        self._outlet.give_up()
        lost = self._added - self._outlet.exported - self._outlet.said + self._dropped.count
        if lost > 0:
            log.warning("traces of %d requests were not exported to %s", lost, self._settings.url)


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

    def over(self) -> int:
        """How many were not spoken of; the next one is said at once."""
        count, self.count, self._said_s = self.count, 0, None
        return count


class _Carried(ReadableSpan):
    """All of a request, as the SDK's queue wants it: a span with a sampled context."""

    def __init__(self, finished: Finished) -> None:
        context = SpanContext(finished.trace_id, finished.spans[0].span_id, is_remote=False, trace_flags=_SAMPLED)
        super().__init__("", context, resource=_NOTHING)
        self.finished = finished


class _Outlet(SpanExporter):
    """In the SDK's thread: from what the loop has queued to what the collector has, and how that went."""

    def __init__(self, settings: Tracing, version: str, *, workers: int) -> None:
        self.taken = 0  # requests, as all below
        self.exported = 0
        self.said = 0  # of the lost
        self.failing = False
        self._lost = _Complaint()
        self._settings = settings
        self._resource = resource_of(settings, version, workers=workers)
        self._scope = "penstock", version
        self._given_up = threading.Event()
        self._http: httpx.Client | None = None

    def open(self) -> None:
        settings = self._settings
        compressed = settings.compression in _COMPRESS
        encoding = {"content-encoding": settings.compression} if compressed else {}
        trusted = (
            ssl.create_default_context(cafile=settings.certificate) if settings.url.startswith("https:") else False
        )
        self._http = httpx.Client(
            headers={**settings.headers, **encoding, "content-type": "application/x-protobuf"},
            verify=trusted,
            trust_env=False,
            follow_redirects=False,
        )

    def give_up(self) -> None:
        """An export under way is not repeated any more, and none begins."""
        self._given_up.set()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.taken += len(spans)
        why = self._send(request([s.finished for s in spans if isinstance(s, _Carried)], self._resource, self._scope))
        if why is None:
            self.exported += len(spans)
            if self.failing:
                self.failing = False
                more = self._lost.over()
                self.said += more
                log.info(
                    "traces are exported to %s again; those of %d more requests are lost", self._settings.url, more
                )
            return SpanExportResult.SUCCESS
        self.failing = True
        if (count := self._lost.due(len(spans))) is not None:
            self.said += count
            log.warning(
                "traces cannot be exported to %s, those of %d requests are lost: %s", self._settings.url, count, why
            )
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        self.give_up()
        if self._http is not None:
            self._http.close()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - the SDK's signature
        return True

    def _send(self, data: bytes) -> str | None:
        """Until the collector has it, cannot have it, or there is no more time; then why."""
        assert self._http is not None
        compress = _COMPRESS.get(self._settings.compression)
        body = data if compress is None else compress(data)
        deadline_s, pause_s, why = monotonic() + self._settings.timeout_s, _FIRST_PAUSE_S, "the gateway ends"
        while not self._given_up.is_set():
            left_s = deadline_s - monotonic()
            try:
                answer = self._http.post(self._settings.url, content=body, timeout=max(0.01, left_s))
            except httpx.HTTPError as error:
                why = str(error) or type(error).__name__
            else:
                if answer.is_success:
                    return None
                why = f"it answered {answer.status_code}"
                if answer.status_code not in _REPEATED:
                    return why
            if monotonic() + pause_s > deadline_s:
                return why
            self._given_up.wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        return why


def resource_of(settings: Tracing, version: str, *, workers: int) -> dict[str, Value]:
    """Of this process: each worker is an instance of its own."""
    host, pid = socket.gethostname(), os.getpid()
    given = settings.resource.get("service.instance.id")
    instance = f"{host}:{pid}" if given is None else given if workers == 1 else f"{given}:{pid}"
    ours = {"service.name": settings.service_name, "service.version": version, "host.name": host}
    return {**ours, "process.pid": pid, **settings.resource, "service.instance.id": instance}
