"""Whether a caller may come in: by its key, judged by the raw path that is routed, before a byte of its body is read.

Decides 401, 403 and 503 of the door; what a tenant may ask for once inside is `router.tenants.tenancy`'s. No key is kept, logged or
answered with, nor any part of one.
"""

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from config.schema import Config
from config.tenants import OTHERS, Scope, Tenant
from metrics.catalog import Metrics
from router.openai.access_errors import AuthFailure, auth_unavailable, lacks_scope, unauthorized
from router.openai.errors import ApiError
from router.tenants.caller import Caller
from router.tenants.key_index import REVOKED, Found
from router.tenants.key_store import KeyStore

audit = logging.getLogger("penstock.audit")

_MAX_KEY_BYTES: Final = 512  # longer ones are none of ours, and are not hashed
_AUDITED_A_SECOND: Final = 10  # lines: who guesses must not fill the disk; all are counted
# Open to everybody: they say nothing of anybody. What is not here, nor the admin API's, asks for a key.
OPEN_PATHS: Final = frozenset({"/", "/livez", "/healthz", "/readyz", "/docs", "/docs/oauth2-redirect", "/openapi.json"})
_OWN_RULES: Final = ("/admin", "/board")  # and what is below them: router.admin_access says who
METRICS: Final = "/metrics"

Peer = tuple[str, int] | Sequence[object] | None
RawHeaders = Iterable[tuple[bytes, bytes]]


class Gate:
    """One for a gateway. `wall_s`: Unix time; `clock_s`: any that only goes forward."""

    def __init__(
        self,
        store: KeyStore,
        tenants: Iterable[Tenant],
        metrics: Metrics,
        *,
        wall_s: Callable[[], float],
        asks_for_metrics: bool,
    ) -> None:
        self._store = store
        self._metrics = metrics
        self._wall_s = wall_s
        self._asks_for_metrics = asks_for_metrics
        self._audited_second, self._audited = 0, 0
        self.configure(tenants)

    def configure(self, tenants: Iterable[Tenant]) -> None:
        """Also on reload; requests under way keep what they came in by."""
        self._policies = {tenant.name: tenant for tenant in tenants}
        self._others = self._policies.get(OTHERS) or Tenant(name=OTHERS)

    def scope_of(self, method: str, path: str) -> Scope | None:
        """What a path asks for; None: nothing. `path` is the one that is routed, never one made from a header."""
        if (
            method == "OPTIONS"
            or path in OPEN_PATHS
            or any(path == own or path.startswith(own + "/") for own in _OWN_RULES)
        ):
            return None
        if path == METRICS or path.startswith(METRICS + "/"):
            return Scope.METRICS if self._asks_for_metrics else None
        return Scope.INFERENCE

    def admit(self, headers: RawHeaders, scope: Scope, peer: Peer = None) -> Caller:
        """Raises ApiError for who may not come in, and counts and audits it. Names in `headers` are lower-case."""
        why, found = self._known(headers)
        if why is None and found is not None:
            caller = Caller(found.tenant, found.id, found.mask, self._policies.get(found.tenant, self._others))
            if caller.has(scope):
                return caller
            self.refused(AuthFailure.SCOPE, peer, found.id)
            raise lacks_scope(scope)
        raise self._refusal(why or AuthFailure.UNKNOWN, peer, found)

    def known(self, headers: RawHeaders) -> Caller | None:
        """Who it is, for those who decide themselves; None: nobody, for whatever reason."""
        why, found = self._known(headers)
        if why is not None or found is None:
            return None
        return Caller(found.tenant, found.id, found.mask, self._policies.get(found.tenant, self._others))

    def refused(self, why: AuthFailure, peer: Peer, key_id: str = "-") -> None:
        """Count it, and say it to the audit log, at most so many times a second."""
        self._metrics.auth_failures_total.labels(why.value).inc()
        second = int(self._wall_s())
        if second != self._audited_second:
            self._audited_second, self._audited = second, 0
        self._audited += 1
        if self._audited <= _AUDITED_A_SECOND:
            audit.warning("refused: reason=%s key=%s address=%s", why.value, key_id, peer[0] if peer else "unknown")

    def _known(self, headers: RawHeaders) -> tuple[AuthFailure | None, Found | None]:
        key = _key_of(headers)
        if key is None:
            return AuthFailure.MISSING, None
        if not key or len(key) > _MAX_KEY_BYTES:
            return AuthFailure.MALFORMED, None
        found = self._store.find(key)
        if found is None:
            return AuthFailure.UNKNOWN, None
        if found.mask & REVOKED:
            return AuthFailure.REVOKED, found
        now = self._wall_s()
        if now >= found.ends_s:
            return AuthFailure.EXPIRED, found
        return (AuthFailure.NOT_YET if now < found.not_before_s else None), found

    def _refusal(self, why: AuthFailure, peer: Peer, found: Found | None) -> ApiError:
        # Who shows no key has none, whatever can be read; any other may be a good one.
        if why is AuthFailure.UNKNOWN and not self._store.knows_all:
            self.refused(AuthFailure.UNAVAILABLE, peer)
            return auth_unavailable()
        self.refused(why, peer, "-" if found is None else found.id)
        return unauthorized(why)


def build_gate(store: KeyStore, config: Config, metrics: Metrics) -> Gate:
    """On the wall's clock: keys expire by the calendar."""
    return Gate(
        store,
        config.tenants,
        metrics,
        wall_s=time.time,  # noqa: TID251 - keys begin and end by the calendar
        asks_for_metrics=config.auth.metrics,
    )


def _key_of(headers: RawHeaders) -> bytes | None:
    """The one that counts: a bearer's, else `x-api-key`. None: there is none; empty: there are several, or it is no bearer's."""
    bearer: bytes | None = None
    other: bytes | None = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, told = value.partition(b" ")
            bearer = told.strip() if bearer is None and scheme.lower() == b"bearer" else b""
        elif name == b"x-api-key":
            other = value.strip() if other is None else b""
    return other if bearer is None else bearer
