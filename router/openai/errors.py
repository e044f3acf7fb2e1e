"""Every error the gateway answers with, one constructor each; the words say what to change.

The table of statuses, types and codes is `router.openai.api_error`; what engines say is translated in `engine_errors`. Both are
reached through this module.
"""

from collections.abc import Iterable, Sequence

from batching.request import Reason, Rejected
from router.openai.api_error import MAX_RETRY_AFTER_S, ApiError, Case, quoted, retry_headers, stream_error_event
from router.openai.engine_errors import from_engine, from_stream_event, upstream_failed

__all__ = [
    "ApiError",
    "Case",
    "bad_http",
    "bodies_full",
    "body_timeout",
    "body_too_large",
    "client_closed",
    "context_length_exceeded",
    "draining",
    "flex_shed",
    "from_engine",
    "from_eviction",
    "from_http_status",
    "from_rejection",
    "from_stream_event",
    "head_timeout",
    "head_too_large",
    "internal_error",
    "invalid_request",
    "method_not_allowed",
    "model_not_found",
    "no_capacity",
    "no_such_replica",
    "not_found",
    "nothing_to_end",
    "overloaded",
    "queue_timeout",
    "shed",
    "stream_error_event",
    "too_late",
    "too_many_viewers",
    "total_timeout",
    "upstream_failed",
    "upstream_garbled",
    "upstream_lost",
    "upstream_timeout",
    "wrong_admin_key",
]

# Where a gateway that drains is replaced by another: the time a load balancer needs to look again.
_DRAIN_RETRY_S = 1.0
_VIEWERS_RETRY_S = 30.0  # somebody may have closed one by then
_DROPPED = "x-penstock-dropped-reason"


def invalid_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(Case.INVALID_REQUEST, message, param=param, code=code)


def bad_http(message: str) -> ApiError:
    """Bytes that are no HTTP request."""
    return ApiError(Case.INVALID_REQUEST, f"The HTTP request could not be read: {message}")


def context_length_exceeded(limit: int | None, got: int | None = None) -> ApiError:
    """A prompt, or prompt and answer together, beyond every replica's context."""
    most = "what any replica of this model can hold" if limit is None else f"the model's context of {limit} tokens"
    size = "" if got is None else f" of about {got} tokens"
    message = f"The request{size} is longer than {most}; shorten the prompt or lower `max_completion_tokens`."
    return ApiError(Case.CONTEXT_LENGTH, message, param="messages")


def not_found(method: str, path: str) -> ApiError:
    return ApiError(Case.NOT_FOUND, f"There is no {method} {quoted(path)} here; GET /docs lists what is.")


def model_not_found(model: str, near: Iterable[str] = ()) -> ApiError:
    """`near`: close matches among what is served."""
    close = ", ".join(quoted(name) for name in near)
    hint = f"Did you mean {close}? " if close else ""
    message = f"The model {quoted(model)} does not exist here. {hint}GET /v1/models lists what is served."
    return ApiError(Case.MODEL_NOT_FOUND, message, param="model")


def wrong_admin_key() -> ApiError:
    """One text for a missing and a wrong key: a guess learns nothing."""
    message = "/admin asks for the key that server.admin_key names, or a token of server.admin_oidc; send it as `Authorization: Bearer KEY`."
    return ApiError(Case.UNAUTHORIZED, message, headers={"www-authenticate": "Bearer"})


def no_such_replica(name: str, near: Iterable[str], known: Iterable[str]) -> ApiError:
    """`near`: close matches among `known`."""
    close, there = [quoted(one) for one in near], [quoted(one) for one in known]
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {', '.join(there[:8]) or 'none'}."
    return ApiError(Case.NOT_FOUND, f"No replica is called {quoted(name)}; {hint} GET /admin/replicas lists them.")


def nothing_to_end(name: str) -> ApiError:
    message = f"Neither a drain nor a notice stands against {quoted(name)}; there is nothing to end."
    return ApiError(Case.CONFLICT, message)


def method_not_allowed(method: str, allow: Sequence[str]) -> ApiError:
    message = f"{method} is not allowed here; use {' or '.join(allow) or 'another method'}."
    return ApiError(Case.METHOD_NOT_ALLOWED, message, headers={"allow": ", ".join(allow)})


def body_timeout(limit_s: float) -> ApiError:
    return ApiError(
        Case.REQUEST_TIMEOUT, f"The request body did not arrive within {limit_s:g} s; send it faster, or less."
    )


def head_timeout(limit_s: float) -> ApiError:
    return ApiError(
        Case.REQUEST_TIMEOUT, f"The request headers did not arrive within {limit_s:g} s; send them at once."
    )


def body_too_large(limit_bytes: int) -> ApiError:
    message = f"The request body is larger than {limit_bytes} bytes; shorten it, or refer to images by URL."
    return ApiError(Case.BODY_TOO_LARGE, message)


def head_too_large(limit_bytes: int, limit_headers: int) -> ApiError:
    message = f"The request has more than {limit_bytes} bytes or {limit_headers} lines of headers; send fewer."
    return ApiError(Case.HEAD_TOO_LARGE, message)


def client_closed() -> ApiError:
    return ApiError(Case.CLIENT_CLOSED, "The client closed the connection.")


def internal_error() -> ApiError:
    """A bug of ours: says nothing of the inside."""
    return ApiError(Case.INTERNAL, "The gateway made an error of its own; try again, and report it if it stays.")


def overloaded(retry_after_s: float | None) -> ApiError:
    message = "All replicas of this model are busy and the queue is full; retry after the time in `retry-after`."
    return ApiError(Case.OVERLOADED, message, headers=_dropped(Reason.QUEUE_FULL, retry_after_s))


def too_late(retry_after_s: float | None) -> ApiError:
    """None: not within what clients wait; nobody is told a time that will not hold."""
    message = "More requests come than can be answered in time. "
    message += (
        "There will be no room for this one within two minutes; try again later."
        if retry_after_s is None
        else "Send this one again, unchanged, after the time in `retry-after`: then there is room for it."
    )
    return ApiError(Case.OVERLOADED, message, headers=_dropped(Reason.OVERLOAD, retry_after_s))


def shed(retry_after_s: float | None) -> ApiError:
    message = "The queue is full, and this request's place went to one of a higher tier or of another tenant; retry after the time in `retry-after`."
    return ApiError(Case.OVERLOADED, message, headers=_dropped(Reason.SHED, retry_after_s))


def bodies_full(retry_after_s: float) -> ApiError:
    """The front door holds as many bytes of bodies as it may."""
    message = "The gateway holds as many request bodies as it may; retry after the time in `retry-after`, or send less."
    return ApiError(Case.OVERLOADED, message, headers={_DROPPED: "body_bytes", **retry_headers(retry_after_s)})


def no_capacity(retry_after_s: float | None) -> ApiError:
    message = "No replica of this model can take the request now; retry later, or ask for another model."
    return ApiError(Case.NO_CAPACITY, message, headers=_dropped(Reason.NO_REPLICA, retry_after_s))


def queue_timeout(retry_after_s: float | None) -> ApiError:
    message = "No replica became free within the time this request may wait; retry later or allow a longer timeout."
    return ApiError(Case.QUEUE_TIMEOUT, message, headers=_dropped(Reason.DEADLINE, retry_after_s))


def flex_shed(reason: Reason, retry_after_s: float | None) -> ApiError:
    """OpenAI's own answer where `service_tier: flex` finds no spare capacity; it is not charged."""
    message = "No spare capacity for `service_tier: flex` now; retry later, or use `service_tier: default`."
    return ApiError(Case.FLEX_SHED, message, headers=_dropped(reason, retry_after_s))


def draining(retry_after_s: float = _DRAIN_RETRY_S) -> ApiError:
    message = "This gateway is shutting down; retry, and another one will answer."
    return ApiError(Case.DRAINING, message, headers=_dropped(Reason.DRAINING, retry_after_s))


def too_many_viewers(limit: int) -> ApiError:
    """Of the board, all live streams together."""
    message = f"The fleet is watched by {limit} already; close a board or a `penstock top`, or ask GET /admin/fleet, which has no such limit."
    return ApiError(Case.RATE_LIMITED, message, code="too_many_viewers", headers=retry_headers(_VIEWERS_RETRY_S))


def upstream_timeout() -> ApiError:
    """Not to be retried by an SDK: minutes of waiting, silently done three times, help nobody."""
    message = "The engine did not answer in time; shorten the prompt, lower `max_completion_tokens` or retry later."
    return ApiError(Case.UPSTREAM_TIMEOUT, message, headers=retry_headers(None))


def total_timeout(limit_s: float) -> ApiError:
    """The operator's bound on a whole request."""
    message = f"The request took longer than the {limit_s:g} s that this gateway allows; lower `max_completion_tokens`."
    return ApiError(Case.UPSTREAM_TIMEOUT, message, headers=retry_headers(None))


def upstream_lost() -> ApiError:
    """The answer broke off after its first byte."""
    return ApiError(
        Case.UPSTREAM, "The engine stopped before the answer was complete; what came so far is partial. Retry."
    )


def upstream_garbled(detail: str = "") -> ApiError:
    """The engine's answer is not what its protocol says."""
    return ApiError(Case.UPSTREAM, "The engine's answer could not be read; retry.", detail=detail)


def from_rejection(
    rejected: Rejected, *, model: str, near: Iterable[str] = (), flex: bool = False, prompt_tokens: int | None = None
) -> ApiError:
    """The scheduler refused a request at once."""
    if rejected.reason is Reason.UNKNOWN_MODEL:
        return model_not_found(model, near)
    if rejected.reason is Reason.CONTEXT_LENGTH:
        return context_length_exceeded(rejected.limit, prompt_tokens)
    return _dropped_request(rejected.reason, rejected.retry_after_s, flex=flex)


def from_eviction(reason: Reason, retry_after_s: float | None = None, *, flex: bool = False) -> ApiError:
    """The scheduler gave a queued request up."""
    if reason is Reason.CONTEXT_LENGTH:
        return context_length_exceeded(None)
    return _dropped_request(reason, retry_after_s, flex=flex)


def from_http_status(status: int, method: str, path: str) -> ApiError:
    """A framework's bare status (routing, mostly) as an OpenAI error."""
    if status == Case.NOT_FOUND.status:
        return not_found(method, path)
    for case in (Case.METHOD_NOT_ALLOWED, Case.REQUEST_TIMEOUT, Case.BODY_TOO_LARGE, Case.HEAD_TOO_LARGE):
        if status == case.status:
            return ApiError(case, f"{method} {quoted(path)} was refused: {case.code}; see GET /docs.")
    if status < 500:
        return invalid_request(f"{method} {quoted(path)} was refused with status {status}; see GET /docs.")
    return internal_error()


def _dropped_request(reason: Reason, retry_after_s: float | None, *, flex: bool) -> ApiError:
    if reason is Reason.DRAINING:
        return draining(_DRAIN_RETRY_S if retry_after_s is None else retry_after_s)
    if flex:
        return flex_shed(reason, retry_after_s)
    if reason is Reason.QUEUE_FULL:
        return overloaded(retry_after_s)
    if reason is Reason.OVERLOAD:
        return too_late(retry_after_s)
    if reason is Reason.SHED:
        return shed(retry_after_s)
    if reason is Reason.DEADLINE:
        return queue_timeout(retry_after_s)
    return no_capacity(retry_after_s)


def _dropped(reason: Reason, retry_after_s: float | None) -> dict[str, str]:
    """Who has no room within what SDKs obey is told the longest of it: they give up at once, others come back then."""
    longest = retry_headers(MAX_RETRY_AFTER_S) if retry_after_s is None else {}
    return {_DROPPED: reason.value, **longest, **retry_headers(retry_after_s)}
