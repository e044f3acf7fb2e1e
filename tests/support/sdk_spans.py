"""A finished trace as the SDK's own spans: what ours are compared with."""

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from router.tracing.tracer import Finished

KINDS = {"server": SpanKind.SERVER, "client": SpanKind.CLIENT, "internal": SpanKind.INTERNAL}


def sdk_spans(
    finished: Finished, resource: Resource | None = None, scope: InstrumentationScope | None = None
) -> list[ReadableSpan]:
    """As a program that uses the SDK throughout would have made them."""
    state = TraceState.from_header([finished.state]) if finished.state else None
    sampled = TraceFlags(TraceFlags.SAMPLED)

    def context(span_id: int, *, is_remote: bool = False) -> SpanContext:
        return SpanContext(finished.trace_id, span_id, is_remote, sampled, state)

    def ns(seconds: float) -> int:
        return finished.zero_ns + round(seconds * 1e9)

    root = finished.spans[0]
    return [
        ReadableSpan(
            span.name,
            context(span.span_id),
            None
            if span.parent_id is None
            else context(span.parent_id, is_remote=span is root and finished.remote_parent),
            resource or Resource({}),
            span.attributes,
            [Event(event.name, event.attributes, ns(event.at_s)) for event in span.events],
            [Link(context(link.span_id), link.attributes) for link in span.links],
            KINDS[span.kind],
            status=Status() if span.failed is None else Status(StatusCode.ERROR, span.failed),
            start_time=ns(span.start_s),
            end_time=ns(span.end_s),
            instrumentation_scope=scope or InstrumentationScope("penstock", "0"),
        )
        for span in finished.spans
    ]
