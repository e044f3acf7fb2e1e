"""What is written by hand as OTLP is, byte for byte of meaning, what the SDK's own encoder makes of the same spans."""

from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from router.tracing.otlp import request
from router.tracing.spans import CLIENT, INTERNAL, SERVER, Event, Link, Span, Value
from router.tracing.tracer import Finished
from tests.support.sdk_spans import sdk_spans

RESOURCE: dict[str, Value] = {"service.name": "penstock", "process.pid": 7}
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
numbers = st.integers(-(2**63), 2**63 - 1)
values = text | st.booleans() | numbers | st.floats(allow_nan=False) | st.lists(text, max_size=3).map(tuple)
attributes = st.dictionaries(text.filter(bool), values, max_size=4)
seconds = st.floats(0, 1e6)
ids = st.integers(1, 2**64 - 1)


@st.composite
def traces(draw: st.DrawFn) -> Finished:
    spans: list[Span] = []
    for number, span_id in enumerate(draw(st.lists(ids, min_size=1, max_size=4, unique=True))):
        start_s = draw(seconds)
        parent_id = draw(st.none() | ids) if number == 0 else spans[0].span_id
        span = Span(
            draw(text),
            draw(st.sampled_from([SERVER, CLIENT, INTERNAL])),
            span_id,
            parent_id,
            start_s,
            start_s + draw(seconds),
            draw(attributes),
            draw(st.none() | text),
        )
        span.events = [Event(draw(text), draw(seconds), draw(attributes)) for _ in range(draw(st.integers(0, 2)))]
        span.links = [Link(spans[0].span_id, draw(attributes))] if spans else []
        spans.append(span)
    state = draw(st.sampled_from(["", "a=1", "a=1,b=x y"]))
    zero_ns = draw(st.integers(10**18, 2 * 10**18))
    return Finished(draw(st.integers(1, 2**128 - 1)), state, spans[0].parent_id is not None, zero_ns, spans)


@example([])
@given(st.lists(traces(), max_size=2))
def test_the_collector_reads_what_the_sdk_would_have_said(finished: list[Finished]) -> None:
    """The same message, field by field, whatever the values."""
    ours = ExportTraceServiceRequest.FromString(request(finished, RESOURCE, ("penstock", "0.1")))
    resource, scope = Resource(RESOURCE), InstrumentationScope("penstock", "0.1")
    theirs = encode_spans([span for one in finished for span in sdk_spans(one, resource, scope)])
    if not finished:
        assert [len(group.scope_spans[0].spans) for group in ours.resource_spans] == [0]
        return
    (group,) = theirs.resource_spans
    for span, told in zip(ours.resource_spans[0].scope_spans[0].spans, group.scope_spans[0].spans, strict=True):
        assert span.flags & 1 == 1  # that it is sampled, which the SDK leaves out
        span.flags &= ~1
        for link in span.links:
            link.flags &= ~1
        if told.status.code == 0:
            told.ClearField("status")  # there, and empty
        assert str(span) == str(told)
    assert str(ours.resource_spans[0].resource) == str(group.resource)
    assert str(ours.resource_spans[0].scope_spans[0].scope) == str(group.scope_spans[0].scope)


def test_half_a_character_does_no_harm() -> None:
    """It becomes a question mark; the export is read all the same."""
    span = Span("chat", SERVER, 1, None, 0.0, 1.0, {"a": "x\ud800"})
    read = ExportTraceServiceRequest.FromString(request([Finished(1, "", False, 10**18, [span])], RESOURCE, ("p", "0")))
    assert read.resource_spans[0].scope_spans[0].spans[0].attributes[0].value.string_value == "x?"
