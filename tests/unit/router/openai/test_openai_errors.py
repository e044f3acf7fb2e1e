"""The error table: statuses, codes, headers and words of every refusal."""

import json
import math

import pytest

from batching.request import Reason, Rejected
from router.openai import errors
from router.openai.api_error import MAX_MESSAGE_CHARS, Case, retry_headers
from router.openai.errors import ApiError, from_eviction, from_http_status, from_rejection, stream_error_event
from router.openai.shapes import ErrorResponse

EVERY = [
    errors.invalid_request("Change `x`.", param="x"),
    errors.bad_http("bad method"),
    errors.context_length_exceeded(2048, 3000),
    errors.not_found("GET", "/nope"),
    errors.model_not_found("x", ["y"]),
    errors.method_not_allowed("GET", ("POST",)),
    errors.wrong_admin_key(),
    errors.no_such_replica("spot", ["spot-0"], ["spot-0"]),
    errors.nothing_to_end("spot-0"),
    errors.body_timeout(30),
    errors.head_timeout(10),
    errors.body_too_large(16 * 2**20),
    errors.head_too_large(65536, 100),
    errors.client_closed(),
    errors.internal_error(),
    errors.overloaded(2.5),
    errors.no_capacity(2.5),
    errors.queue_timeout(2.5),
    errors.flex_shed(Reason.QUEUE_FULL, 2.5),
    errors.too_late(2.5),
    errors.too_late(None),
    errors.shed(2.5),
    errors.bodies_full(2.0),
    errors.draining(),
    errors.upstream_failed(),
    errors.upstream_timeout(),
    errors.upstream_lost(),
    errors.upstream_garbled(),
    from_http_status(415, "POST", "/v1/x"),
    from_http_status(503, "POST", "/v1/x"),
]


def header(error: ApiError, name: str) -> str | None:
    return {k.decode(): v.decode() for k, v in error.headers()}.get(name)


@pytest.mark.parametrize("error", EVERY, ids=lambda e: e.case.name)
def test_compat_21_every_error_is_the_openai_object(error: ApiError) -> None:
    """message, type, param and code, nothing else; code is a string or null; the message is a sentence with a hint."""
    document = json.loads(error.to_body())
    assert set(document) == {"error"}
    assert set(document["error"]) == {"message", "type", "param", "code"}
    ErrorResponse.model_validate(document, strict=True)
    assert error.message.endswith(".") or "bad method" in error.message
    assert error.phrase


def test_compat_22_the_table() -> None:
    """Statuses and codes that clients test for; changing one breaks somebody."""
    assert {case.name: (case.status, case.code) for case in Case} == {
        "INVALID_REQUEST": (400, None),
        "CONTEXT_LENGTH": (400, "context_length_exceeded"),
        "UNAUTHORIZED": (401, "invalid_api_key"),
        "FORBIDDEN": (403, "permission_denied"),
        "MODEL_FORBIDDEN": (403, "model_not_found"),
        "NOT_FOUND": (404, "not_found"),
        "MODEL_NOT_FOUND": (404, "model_not_found"),
        "METHOD_NOT_ALLOWED": (405, "method_not_allowed"),
        "REQUEST_TIMEOUT": (408, "request_timeout"),
        "CONFLICT": (409, "conflict"),
        "BODY_TOO_LARGE": (413, "request_too_large"),
        "HEAD_TOO_LARGE": (431, "headers_too_large"),
        "RATE_LIMITED": (429, "rate_limit_exceeded"),
        "REQUESTS_LIMITED": (429, "rate_limit_exceeded"),
        "TOKENS_LIMITED": (429, "rate_limit_exceeded"),
        "QUOTA": (429, "insufficient_quota"),
        "FLEX_SHED": (429, "resource_unavailable"),
        "CLIENT_CLOSED": (499, "client_closed"),
        "INTERNAL": (500, "internal_error"),
        "UPSTREAM": (502, "upstream_error"),
        "AUTH_UNAVAILABLE": (503, "auth_unavailable"),
        "OVERLOADED": (503, "engine_overloaded"),
        "NO_CAPACITY": (503, "no_capacity"),
        "QUEUE_TIMEOUT": (503, "queue_timeout"),
        "DRAINING": (503, "draining"),
        "UPSTREAM_TIMEOUT": (504, "timeout"),
    }
    assert len({(case.status, case.type, case.code) for case in Case}) == len(Case)


@pytest.mark.parametrize(
    ("wait_s", "seconds", "millis"),
    [
        (0.0, "1", "100"),
        (-5, "1", "100"),
        (0.25, "1", "250"),
        (1.0, "1", "1000"),
        (1.2, "2", "1200"),
        (119.5, "120", "119500"),
        (120, "120", "120000"),
        (600, "120", "120000"),
        (math.inf, "120", "120000"),
    ],
)
def test_compat_23_retry_headers(wait_s: float, seconds: str, millis: str) -> None:
    """An integer of at least 1 and its milliseconds, never more than the 120 s beyond which SDKs give up."""
    assert retry_headers(wait_s) == {"retry-after": seconds, "retry-after-ms": millis}


@pytest.mark.parametrize("wait_s", [None, math.nan])
def test_hopeless_retries_are_told_so(wait_s: float | None) -> None:
    """Where retrying will not help, SDKs are told not to."""
    assert retry_headers(wait_s) == {"x-should-retry": "false"}
    assert header(errors.upstream_timeout(), "x-should-retry") == "false"


@pytest.mark.parametrize(
    ("reason", "flex", "case"),
    [
        (Reason.QUEUE_FULL, False, Case.OVERLOADED),
        (Reason.QUEUE_FULL, True, Case.FLEX_SHED),
        (Reason.DEADLINE, False, Case.QUEUE_TIMEOUT),
        (Reason.DEADLINE, True, Case.FLEX_SHED),
        (Reason.NO_REPLICA, False, Case.NO_CAPACITY),
        (Reason.NO_REPLICA, True, Case.FLEX_SHED),
        (Reason.DRAINING, False, Case.DRAINING),
        (Reason.DRAINING, True, Case.DRAINING),
        (Reason.UNKNOWN_MODEL, True, Case.MODEL_NOT_FOUND),
        (Reason.CONTEXT_LENGTH, True, Case.CONTEXT_LENGTH),
    ],
)
def test_compat_22_rejections(reason: Reason, flex: bool, case: Case) -> None:
    """Each reason of the scheduler is one case; flex is shed with 429 where others get 503."""
    error = from_rejection(
        Rejected(reason, retry_after_s=2.5, limit=100), model="m", near=["mm"], flex=flex, prompt_tokens=120
    )
    assert error.case is case
    if case.status in {429, 503}:
        assert header(error, "retry-after") == "3"
        assert header(error, "retry-after-ms") == "2500"
        assert header(error, "x-penstock-dropped-reason") == reason.value


@pytest.mark.parametrize("reason", [r for r in Reason if r not in {Reason.CONTEXT_LENGTH, Reason.UNKNOWN_MODEL}])
def test_evictions_are_answered_like_rejections(reason: Reason) -> None:
    """Having waited does not change what is wrong, nor when to return; where that is not known, or not soon, it is not told."""
    for retry_after_s in (1.0, None):
        rejected = from_rejection(Rejected(reason, retry_after_s=retry_after_s), model="m")
        evicted = from_eviction(reason, retry_after_s)
        assert (evicted.case, evicted.headers()) == (rejected.case, rejected.headers())
    assert (header(evicted, "x-should-retry") == "false") == (reason is not Reason.DRAINING)


def test_lengths_are_in_the_message() -> None:
    """The limit and what was asked: the client can compute what to cut."""
    error = from_rejection(Rejected(Reason.CONTEXT_LENGTH, limit=2048), model="m", prompt_tokens=3000)
    assert "2048" in error.message
    assert "3000" in error.message
    assert from_eviction(Reason.CONTEXT_LENGTH).code == "context_length_exceeded"


def test_compat_20_an_unknown_model_comes_with_near_ones() -> None:
    """404, the param, and what may have been meant."""
    error = errors.model_not_found("lama", ["llama", "llama-2"])
    assert (error.status, error.param) == (404, "model")
    assert "`llama`, `llama-2`" in error.message
    assert "Did you mean" not in errors.model_not_found("lama").message


def test_405_names_what_is_allowed() -> None:
    """RFC 9110 wants the Allow header."""
    assert header(errors.method_not_allowed("GET", ("POST", "OPTIONS")), "allow") == "POST, OPTIONS"


@pytest.mark.parametrize(
    ("status", "case"), [(404, Case.NOT_FOUND), (405, Case.METHOD_NOT_ALLOWED), (413, Case.BODY_TOO_LARGE)]
)
def test_bare_statuses_of_a_framework(status: int, case: Case) -> None:
    """Routing errors have the same shape as all others."""
    assert from_http_status(status, "GET", "/x").case is case


def test_the_request_id_is_in_our_own_failures_only() -> None:
    """A user's bug report of a 5xx must be findable; a 4xx is about the request itself."""
    assert json.loads(errors.internal_error().to_body("req-1"))["error"]["message"].endswith("(request id: req-1)")
    assert "req-1" not in errors.not_found("GET", "/").to_body("req-1").decode()
    assert "request id" not in errors.internal_error().to_body().decode()


def test_messages_are_bounded() -> None:
    """A model name of megabytes is not sent back."""
    assert len(errors.model_not_found("x" * 10**6).message) <= MAX_MESSAGE_CHARS
    assert len(errors.invalid_request("x" * 10**6, param="p" * 10**6).to_body()) < 1000


def test_compat_2_4_a_stream_error_has_no_choices() -> None:
    """The one event that every client understands as failure: error alone, one data line, no event name."""
    event = stream_error_event(errors.invalid_request("line\nline \u2028 é", param="x"))
    assert event.startswith(b"data: {")
    assert event.count(b"\n") == 2
    assert event.endswith(b"\n\n")
    assert set(json.loads(event[6:])) == {"error"}


def test_labels_are_the_tables() -> None:
    """Metrics never take an engine's own code for a label."""
    assert errors.invalid_request("x.", code="whatever_the_engine_says").label == "invalid_request_error"
    assert errors.overloaded(1).label == "engine_overloaded"
