"""The error table: every way in which a call can fail, as OpenAI's clients know it - and the error object itself.

Decides status, type and code of each case, and the shape on the wire. What a message says, and when an error happens, is
`router.openai.errors`' and its callers'.
"""

import json
import math
from collections.abc import Mapping
from enum import Enum
from http import HTTPStatus

# OpenAI's SDKs obey a wait only when 0 < s <= 120; beyond it they do not retry at all.
MAX_RETRY_AFTER_S = 120.0
# A client that comes back sooner finds the same queue.
MIN_RETRY_AFTER_S = 0.1
# An error message is a sentence or two; longer ones are an engine echoing its input.
MAX_MESSAGE_CHARS = 512
_MAX_PARAM_CHARS = 128


class Case(Enum):
    """status, type, code. `code` is a string or null, never a number: the SDKs compare strings."""

    INVALID_REQUEST = 400, "invalid_request_error", None
    CONTEXT_LENGTH = 400, "invalid_request_error", "context_length_exceeded"
    UNAUTHORIZED = 401, "invalid_request_error", "invalid_api_key"
    FORBIDDEN = 403, "permission_error", "permission_denied"
    MODEL_FORBIDDEN = 403, "invalid_request_error", "model_not_found"  # as OpenAI says it of a project without access
    NOT_FOUND = 404, "invalid_request_error", "not_found"
    MODEL_NOT_FOUND = 404, "invalid_request_error", "model_not_found"
    METHOD_NOT_ALLOWED = 405, "invalid_request_error", "method_not_allowed"
    REQUEST_TIMEOUT = 408, "invalid_request_error", "request_timeout"
    CONFLICT = 409, "invalid_request_error", "conflict"
    BODY_TOO_LARGE = 413, "invalid_request_error", "request_too_large"
    HEAD_TOO_LARGE = 431, "invalid_request_error", "headers_too_large"
    RATE_LIMITED = 429, "rate_limit_error", "rate_limit_exceeded"
    REQUESTS_LIMITED = 429, "requests", "rate_limit_exceeded"
    TOKENS_LIMITED = 429, "tokens", "rate_limit_exceeded"
    QUOTA = 429, "insufficient_quota", "insufficient_quota"
    FLEX_SHED = 429, "rate_limit_error", "resource_unavailable"
    CLIENT_CLOSED = 499, "client_error", "client_closed"  # a label for metrics and logs; nobody is left to read it
    INTERNAL = 500, "server_error", "internal_error"
    UPSTREAM = 502, "server_error", "upstream_error"
    AUTH_UNAVAILABLE = 503, "server_error", "auth_unavailable"
    OVERLOADED = 503, "server_error", "engine_overloaded"
    NO_CAPACITY = 503, "server_error", "no_capacity"
    QUEUE_TIMEOUT = 503, "server_error", "queue_timeout"
    DRAINING = 503, "server_error", "draining"
    UPSTREAM_TIMEOUT = 504, "server_error", "timeout"

    def __init__(self, status: int, type_: str, code: str | None) -> None:
        self.status = status
        self.type = type_
        self.code = code


class ApiError(Exception):
    """An answer that is an error: a row of the table, a message that says what to change, and headers.

    `detail` is for logs only (scrubbed, but the engine's own words); it never reaches the client.
    """

    def __init__(
        self,
        case: Case,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        detail: str = "",
    ) -> None:
        self.message = bounded(message)
        super().__init__(self.message)
        self.case = case
        self.param = None if param is None else param[:_MAX_PARAM_CHARS]
        self.code = code or case.code
        self.detail = detail
        self._headers = dict(headers or {})

    @property
    def status(self) -> int:
        return self.case.status

    @property
    def type(self) -> str:
        return self.case.type

    @property
    def label(self) -> str:
        """A metric label: the table's code, never an engine's."""
        return self.case.code or self.case.type

    @property
    def phrase(self) -> str:
        """The status line's words."""
        return "Client Closed Request" if self.case is Case.CLIENT_CLOSED else HTTPStatus(self.status).phrase

    def headers(self) -> list[tuple[bytes, bytes]]:
        """As ASGI wants them; names in lower case."""
        return [(name.encode("ascii"), value.encode("latin-1", "replace")) for name, value in self._headers.items()]

    def to_object(self, request_id: str = "") -> dict[str, dict[str, str | None]]:
        """`{"error": {...}}`. A failure of ours names the request, so that a user's report can be found in the logs."""
        ours = self.status >= HTTPStatus.INTERNAL_SERVER_ERROR and request_id
        message = f"{self.message} (request id: {request_id})" if ours else self.message
        return {"error": {"message": message, "type": self.type, "param": self.param, "code": self.code}}

    def to_body(self, request_id: str = "") -> bytes:
        return json.dumps(self.to_object(request_id), separators=(",", ":")).encode("ascii")


def stream_error_event(error: ApiError, request_id: str = "") -> bytes:
    """The only failure that every client sees once a stream runs: no `choices` (Open WebUI would hide it), no event name."""
    return b"data: " + error.to_body(request_id) + b"\n\n"


def retry_headers(retry_after_s: float | None) -> dict[str, str]:
    """`retry-after` and `retry-after-ms` within what SDKs obey; None: retrying will not help, and they are told so."""
    if retry_after_s is None or math.isnan(retry_after_s):
        return {"x-should-retry": "false"}
    wait_s = min(max(retry_after_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)
    return {"retry-after": str(math.ceil(wait_s)), "retry-after-ms": str(math.ceil(wait_s * 1e3))}


def bounded(text: str, limit: int = MAX_MESSAGE_CHARS) -> str:
    """`text`, cut where it is too long for a message."""
    return text if len(text) <= limit else text[: limit - 3] + "..."


def quoted(name: str, limit: int = 100) -> str:
    """A client's own word in a message: short, and in backticks."""
    return f"`{bounded(name, limit)}`"
