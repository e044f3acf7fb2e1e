"""What callers without a good key are told, and tenants beyond their limits; one constructor each, as `router.openai.errors`.

No message shows a key or any part of it, and a wrong one is told apart from an expired one only to who has the expired one.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum

from router.openai.api_error import ApiError, Case, quoted, retry_headers

_BEARER = {"www-authenticate": "Bearer"}
_RETRY_S = 1.0  # keys are looked at once a second


class AuthFailure(StrEnum):
    """Why a caller was refused; a metric label."""

    MISSING = "missing"
    MALFORMED = "malformed"
    UNKNOWN = "unknown"
    NOT_YET = "not_yet"
    EXPIRED = "expired"
    REVOKED = "revoked"
    SCOPE = "scope"
    MODEL = "model"
    TIER = "tier"
    UNAVAILABLE = "unavailable"
    ADMIN_KEY = "admin_key"


_SAID: Mapping[AuthFailure, str] = {
    AuthFailure.MISSING: "You didn't provide an API key; send it as `Authorization: Bearer KEY`.",
    AuthFailure.MALFORMED: "The API key could not be read; send one, as `Authorization: Bearer KEY`.",
    AuthFailure.UNKNOWN: "Incorrect API key provided; ask whoever runs this gateway for one.",
    AuthFailure.NOT_YET: "This API key is not valid yet.",
    AuthFailure.EXPIRED: "This API key has expired; ask whoever runs this gateway for another.",
    AuthFailure.REVOKED: "This API key has been revoked; ask whoever runs this gateway for another.",
}


def unauthorized(why: AuthFailure) -> ApiError:
    return ApiError(Case.UNAUTHORIZED, _SAID[why], headers=_BEARER)


def auth_unavailable() -> ApiError:
    """We do not know whether the key is good, which is not the caller's fault."""
    message = "The gateway cannot read its API keys now, so it cannot tell whether yours is good; retry."
    return ApiError(Case.AUTH_UNAVAILABLE, message, headers=retry_headers(_RETRY_S))


def bad_token(why: str) -> ApiError:
    """Of the login, for `/admin`."""
    headers = {"www-authenticate": 'Bearer error="invalid_token"'}
    return ApiError(Case.UNAUTHORIZED, f"This token does not open /admin: {why}.", headers=headers)


def token_lacks(what: str) -> ApiError:
    message = f"You are known, and may not {what} here; server.admin_oidc.{what} says who may."
    return ApiError(Case.FORBIDDEN, message)


def tokens_unavailable() -> ApiError:
    message = (
        "The keys of server.admin_oidc.issuer cannot be read now, so it is not known whether your token is good; retry."
    )
    return ApiError(Case.AUTH_UNAVAILABLE, message, headers=retry_headers(_RETRY_S))


def lacks_scope(scope: str) -> ApiError:
    message = (
        f"This API key lacks the scope {quoted(scope)}, which this asks for; `penstock keys create --scope` gives it."
    )
    return ApiError(Case.FORBIDDEN, message)


def model_forbidden(model: str) -> ApiError:
    message = f"Your key has no access to the model {quoted(model)}; GET /v1/models lists those that it has."
    return ApiError(Case.MODEL_FORBIDDEN, message, param="model")


def tier_forbidden(tier: str, allowed: Iterable[str]) -> ApiError:
    message = f"Your key may not ask for `service_tier: {tier}`; it may for {', '.join(allowed)}."
    return ApiError(Case.FORBIDDEN, message, param="service_tier")


def too_many_requests(limit: int, wait_s: float, headers: Mapping[str, str]) -> ApiError:
    message = f"Rate limit reached for requests per minute (RPM): limit {limit}. Retry after the time in `retry-after`."
    return ApiError(Case.REQUESTS_LIMITED, message, headers={**headers, **retry_headers(wait_s)})


def too_many_tokens(limit: int, left: int, asked: int, wait_s: float, headers: Mapping[str, str]) -> ApiError:
    message = (
        f"Rate limit reached for tokens per minute (TPM): limit {limit}, left {left}, this request may take {asked}. "
        "Retry after the time in `retry-after`, or lower `max_completion_tokens`."
    )
    return ApiError(Case.TOKENS_LIMITED, message, headers={**headers, **retry_headers(wait_s)})


def larger_than_limit(limit: int, asked: int, headers: Mapping[str, str]) -> ApiError:
    """It would never fit, so that retrying is of no use."""
    message = (
        f"Request too large for tokens per minute (TPM): limit {limit}, this request may take {asked}. "
        "Shorten the prompt or lower `max_completion_tokens`; retrying does not help."
    )
    return ApiError(Case.TOKENS_LIMITED, message, headers={**headers, **retry_headers(None)})


def too_many_at_once(limit: int, wait_s: float, headers: Mapping[str, str]) -> ApiError:
    message = f"{limit} requests of yours are under way, which is as many as may be at once; send this one when another has ended."
    return ApiError(Case.REQUESTS_LIMITED, message, headers={**headers, **retry_headers(wait_s)})


def quota_spent(usd: float) -> ApiError:
    message = (
        f"You exceeded your current quota of {usd:g} US dollars a month; it begins anew with the month (UTC). "
        "Ask whoever runs this gateway for more."
    )
    return ApiError(Case.QUOTA, message, headers=retry_headers(None))
