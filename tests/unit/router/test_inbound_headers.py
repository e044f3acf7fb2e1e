"""What of a request's head is kept while its answer runs: what somebody reads, and nothing else."""

from router.calls import _PASSED_HEADERS
from router.inbound import read_headers
from router.openai.request import _AFFINITY
from router.tracing.context import TRACEPARENT, TRACESTATE
from router.tracing.spans import _CONVERSATION


def test_what_is_read_later_is_kept() -> None:
    """Of every list of headers that any module goes by; the last value counts."""
    names = {*_PASSED_HEADERS, *_CONVERSATION, TRACEPARENT, TRACESTATE}
    names |= {name for source, name in _AFFINITY if source == "head"}
    names |= {"x-stainless-read-timeout", "x-stainless-retry-count"}
    told = [(name.encode(), value) for name in names for value in (b"first", b"last\xe9")]
    assert read_headers(told) == dict.fromkeys(names, "last\xe9")


def test_secrets_and_the_rest_are_not() -> None:
    """A key in a head would else stay in memory for as long as its stream runs."""
    assert (
        read_headers([(b"authorization", b"Bearer k"), (b"x-api-key", b"k"), (b"cookie", b"k"), (b"host", b"h")]) == {}
    )
    assert read_headers([]) == {}
