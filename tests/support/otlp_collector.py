"""A collector of our own: an HTTP server that takes OTLP's protobuf export of traces and keeps the spans, decoded.

It listens from the first moment; `status` says what it answers with, and `hold` keeps it from answering at all.
"""

import gzip
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from tests.support.patience import PATIENCE_S

_KINDS = {1: "internal", 2: "server", 3: "client"}


@dataclass(slots=True)
class Told:
    """One span as it was exported; ids in hex, times in nanoseconds since 1970."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    events: list[tuple[str, int, dict[str, Any]]]
    links: list[tuple[str, dict[str, Any]]]
    error: str | None  # its status' message; None: no error
    state: str
    resource: dict[str, Any]
    children: list["Told"] = field(default_factory=list)

    def child(self, name: str) -> "Told":
        """The one of this name."""
        found = [child for child in self.children if child.name == name]
        assert len(found) == 1, [child.name for child in self.children]
        return found[0]

    def of(self, kind: str) -> list["Told"]:
        return [child for child in self.children if child.kind == kind]

    def event(self, name: str) -> dict[str, Any]:
        """The attributes of the one of this name."""
        found = [attributes for told, _, attributes in self.events if told == name]
        assert len(found) == 1, self.events
        return found[0]


class OtlpCollector:
    """What has come so far."""

    def __init__(self) -> None:
        self.spans: list[Told] = []
        self.exports: list[dict[str, str]] = []  # the headers of each
        self.status = 200
        self.release = threading.Event()  # cleared: nothing is answered
        self.release.set()
        self.arrived = threading.Event()  # an export is here, answered or not
        self.url = ""
        self._changed = threading.Condition()

    def take(self, headers: dict[str, str], body: bytes) -> None:
        request = ExportTraceServiceRequest.FromString(body)
        found = [
            _told(span, _attributes(group.resource.attributes))
            for group in request.resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]
        with self._changed:
            self.exports.append(headers)
            if self.status == 200:
                self.spans += found
            self._changed.notify_all()

    def roots(self) -> list[Told]:
        """Requests, each with its tree."""
        with self._changed:
            spans = list(self.spans)
        by_id = {span.span_id: span for span in spans}
        for span in spans:
            span.children = []
        for span in spans:
            if span.parent_id in by_id:
                by_id[span.parent_id].children.append(span)
        return [span for span in spans if span.kind == "server"]

    def until(self, count: int) -> list[Told]:
        """So many requests; blocks a thread, not a loop."""
        with self._changed:
            assert self._changed.wait_for(lambda: self._servers() >= count, PATIENCE_S), self.spans
        return self.roots()

    def until_exports(self, count: int) -> None:
        """So many exports, whatever was answered."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.exports) >= count, PATIENCE_S), self.exports

    def _servers(self) -> int:
        return sum(span.kind == "server" for span in self.spans)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *args: Any) -> None:
        """A gateway that was killed leaves its connection as it is."""


@contextmanager
def collecting() -> Iterator[OtlpCollector]:
    """A collector on a free port of this machine."""
    collector = OtlpCollector()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            encoding = self.headers.get("content-encoding", "")
            body = {"gzip": gzip.decompress, "deflate": zlib.decompress}.get(encoding, bytes)(body)
            collector.arrived.set()
            assert collector.release.wait(PATIENCE_S)
            collector.take({name.lower(): value for name, value in self.headers.items()} | {":path": self.path}, body)
            answer = ExportTraceServiceResponse().SerializeToString()
            self.send_response(collector.status)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: Any) -> None:
            """Nobody reads it."""

    server = _Server(("127.0.0.1", 0), Handler)
    collector.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield collector
    finally:
        collector.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _told(span: Any, resource: dict[str, Any]) -> Told:
    return Told(
        name=span.name,
        kind=_KINDS[span.kind],
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_id=span.parent_span_id.hex(),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        attributes=_attributes(span.attributes),
        events=[(event.name, event.time_unix_nano, _attributes(event.attributes)) for event in span.events],
        links=[(link.span_id.hex(), _attributes(link.attributes)) for link in span.links],
        error=span.status.message if span.status.code == 2 else None,
        state=span.trace_state,
        resource=resource,
    )


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [_value(one) for one in value.array_value.values]
    return getattr(value, kind)
