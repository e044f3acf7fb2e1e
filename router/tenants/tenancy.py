"""A caller's request against what its tenant may: models, tiers, trust, and limits from its arrival to its end.

Decides what a refusal is told. Who the caller is has been decided at the gate; how limits are counted is the accounts' business.
"""

import asyncio
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from math import inf, isinf
from typing import Any, Protocol

import msgspec

from batching.request import Outcome, Request
from config.schema import Config
from config.tenants import Limits
from metrics.catalog import Metrics
from router.client import Headers
from router.exchange import Exchange
from router.openai.access_errors import (
    AuthFailure,
    larger_than_limit,
    model_forbidden,
    quota_spent,
    tier_forbidden,
    too_many_at_once,
    too_many_requests,
    too_many_tokens,
)
from router.openai.call_spec import CallSpec
from router.openai.errors import ApiError
from router.openai.request import SERVICE_TIERS
from router.tenants.account import Account, Bound, Hold, Refusal, own_account
from router.tenants.caller import Caller
from router.tenants.durations import shown
from router.tenants.gate import Gate
from router.tenants.policy import apart, cache_salt, may_use, tier_of

_UNASKED = (None, "auto")


class Accounts(Protocol):
    """Where the accounts of tenants are kept."""

    def of(self, tenant: str, limits: Limits) -> Account: ...

    async def more(self, tenant: str, account: Account, tokens: int, refusal: Refusal) -> bool:
        """Whether it is worth trying again: somebody else had what was missing."""
        ...


class OwnAccounts:
    """Of a gateway that stands alone."""

    def __init__(self) -> None:
        self._accounts: dict[str, Account] = {}

    def of(self, tenant: str, limits: Limits) -> Account:
        account = self._accounts.get(tenant)
        if account is None or account.limits != limits:
            account = self._accounts[tenant] = own_account(limits, account)
        return account

    async def more(self, tenant: str, account: Account, tokens: int, refusal: Refusal) -> bool:
        """Nobody else has anything."""
        del tenant, account, tokens, refusal
        return False


class Tenancy:
    """One for a gateway that asks for keys. `wall`: the calendar's time, for months."""

    def __init__(self, config: Config, gate: Gate, metrics: Metrics, *, wall: Callable[[], datetime]) -> None:
        self._gate = gate
        self._metrics = metrics
        self._wall = wall
        self._pepper = None if config.auth.pepper is None else config.auth.pepper.encode()
        self.accounts: Accounts = OwnAccounts()

    def spec(self, caller: Caller, spec: CallSpec, fields: Mapping[str, Any]) -> CallSpec:
        """The call as this tenant's; raises ApiError (403) for what it may not ask for."""
        policy = caller.policy
        if not may_use(policy, spec.model):
            self._gate.refused(AuthFailure.MODEL, None, caller.key_id)
            raise model_forbidden(spec.model)
        asked = fields.get("service_tier")
        wanted = None if asked in _UNASKED else spec.service_tier.label
        tier = tier_of(policy, wanted)
        if tier is None:
            self._gate.refused(AuthFailure.TIER, None, caller.key_id)
            raise tier_forbidden(str(asked), policy.service_tiers)
        salt, chunks = None, spec.prefix_chunks
        if policy.isolate_cache and self._pepper is not None:
            salt = cache_salt(self._pepper, caller.tenant)
            chunks = apart(salt, chunks)
        return msgspec.structs.replace(
            spec,
            tenant=caller.tenant,
            tenant_class=policy.tenant_class,
            weight=policy.weight,
            service_tier=SERVICE_TIERS[tier],
            trusted=caller.trusted,
            cache_salt=salt,
            prefix_chunks=chunks,
        )

    async def enter(self, caller: Caller, request: Request, answer_tokens: int) -> tuple[Hold, Headers] | None:
        """What it has of its tenant's limits, and the headers that say so; None: it has none. Raises ApiError (429).

        `answer_tokens`: of each choice, at most.
        """
        limits = caller.policy.limits
        if limits == _NO_LIMITS:
            return None
        account = self.accounts.of(caller.tenant, limits)
        tokens = request.prompt_tokens + request.sequences * answer_tokens
        outcome = account.enter(tokens, self._now(), self._wall())
        if isinstance(outcome, Refusal) and await self.accounts.more(caller.tenant, account, tokens, outcome):
            outcome = account.enter(tokens, self._now(), self._wall())
        if isinstance(outcome, Refusal):
            self._metrics.rate_limited_total.labels(outcome.bound.value).inc()
            raise _refused(limits, account, outcome, tokens, self._now())
        return outcome, [(name.encode(), value.encode()) for name, value in _headers(account, self._now()).items()]

    def leave(self, exchange: Exchange) -> None:
        """Its end, whatever that was."""
        hold = exchange.hold
        if hold is None:
            return
        hold.account.settle(hold, self._now(), self._wall(), tokens=_used(exchange), usd=exchange.usd)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()


def build_tenancy(config: Config, gate: Gate, metrics: Metrics) -> Tenancy:
    """On the calendar's clock."""
    return Tenancy(config, gate, metrics, wall=lambda: datetime.now(UTC))


_NO_LIMITS = Limits()


def _used(exchange: Exchange) -> int | None:
    """Tokens of prompt and answer. None: it was never served, and not by its client's doing."""
    request, usage = exchange.request, exchange.usage
    assert request is not None
    ours = exchange.error is not None and exchange.error.status >= 500
    said = exchange.timeline.output_tokens
    if exchange.placed is None:
        return None if ours or exchange.outcome in {Outcome.REJECTED, Outcome.EVICTED} else 0
    if exchange.outcome is Outcome.FAILED and not said:
        return None if ours else 0
    prompt = None if usage is None else usage.prompt_tokens
    answer = None if usage is None else usage.completion_tokens
    return (request.prompt_tokens if prompt is None else prompt) + (said if answer is None else answer)


def _headers(account: Account, now: float) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, standing in account.standings(now).items():
        found[f"x-ratelimit-limit-{name}"] = str(standing.limit)
        found[f"x-ratelimit-remaining-{name}"] = str(standing.left)
        found[f"x-ratelimit-reset-{name}"] = shown(standing.reset_s)
    return found


def _refused(limits: Limits, account: Account, refusal: Refusal, tokens: int, now: float) -> ApiError:
    headers = _headers(account, now)
    wait_s = None if isinf(refusal.wait_s) else refusal.wait_s
    match refusal.bound:
        case Bound.REQUESTS:
            return too_many_requests(limits.requests_per_minute or 0, wait_s or 0.0, headers)
        case Bound.TOKENS:
            return too_many_tokens(limits.tokens_per_minute or 0, refusal.left, tokens, wait_s or 0.0, headers)
        case Bound.TOO_LARGE:
            return larger_than_limit(limits.tokens_per_minute or 0, tokens, headers)
        case Bound.CONCURRENCY:
            return too_many_at_once(limits.concurrency or 0, wait_s or 0.0, headers)
        case Bound.USD:
            return quota_spent(limits.usd_per_month or inf)
