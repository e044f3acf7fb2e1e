"""The sections `auth` and `tenants`: where API keys come from, and what the tenants behind them may do (docs/tenants.md)."""

from collections.abc import Iterator, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal, Self

from pydantic import AwareDatetime, Field, PositiveFloat, PositiveInt, model_validator

from config.checks import Problem, refusal
from config.section import Section
from config.shared import RedisServer

OTHERS: Final = "*"  # the tenant whose settings hold for those that are not listed, each for itself
MAX_CLASSES: Final = 16  # a metric's label: each multiplies the series of money
_SHORTEST_PEPPER: Final = 16
_SHORTEST_KEY: Final = 20

TierName = Literal["priority", "default", "flex"]
TenantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
KeyId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,15}$")]


class Scope(StrEnum):
    """What a key is good for; one that is not named is not had."""

    INFERENCE = "inference"  # /v1
    ADMIN_READ = "admin:read"  # GET of /admin
    ADMIN_WRITE = "admin:write"  # all of /admin
    METRICS = "metrics"  # /metrics, where auth.metrics asks for a key
    TRUSTED = "trusted"  # request fields that are stripped for strangers go through


class InlineKey(Section):
    """One key, written here by its hash: `penstock keys create` prints the line."""

    id: KeyId
    tenant: TenantName
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the key's characters, in hexadecimal")
    scopes: tuple[Scope, ...] = (Scope.INFERENCE,)
    not_before: AwareDatetime | None = None
    expires: AwareDatetime | None = None


class Auth(Section):
    """Who may ask. Off while no key comes from anywhere."""

    keys_file: str | None = Field(
        None, min_length=1, description="JSON lines that `penstock keys` writes; read again whenever it changes"
    )
    keys: tuple[InlineKey, ...] = Field((), description="a handful, by their hashes")
    secret_keys: str | None = Field(
        None,
        repr=False,
        description="a handful, as TENANT=KEY separated by spaces; `env:NAME` or `file:/path` keep them out of this file",
    )
    keys_redis: RedisServer = Field(
        RedisServer(), description="a Redis that `penstock keys --redis` writes; gateways follow every change"
    )
    pepper: str | None = Field(
        None,
        repr=False,
        description="a secret without which the stored hashes are of no use; `env:NAME` or `file:/path`",
    )
    metrics: bool = Field(False, description="/metrics asks for a key with the scope `metrics`, too")

    @property
    def on(self) -> bool:
        """Whether anybody is asked for a key."""
        return self.keys_file is not None or bool(self.keys) or self.secret_keys is not None or self.keys_redis.enabled

    @model_validator(mode="after")
    def _no_contradiction(self) -> Self:
        problems = list(_auth_problems(self))
        if problems:
            raise refusal("auth", problems)
        return self


class Limits(Section):
    """Of one tenant, over all its keys. Null: none."""

    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = Field(None, description="prompt and answer together")
    concurrency: PositiveInt | None = Field(None, description="requests under way or waiting")
    usd_per_month: PositiveFloat | None = Field(
        None, description="of machine time, by calendar month (UTC); new requests are refused once it is spent"
    )


class Tenant(Section):
    """Whose keys are of this name."""

    name: Annotated[str, Field(pattern=r"^(\*|[A-Za-z0-9][A-Za-z0-9._-]{0,62})$", description="* for all others")]
    weight: float = Field(
        1.0, ge=0.01, le=1000, description="2: twice the tokens of a tenant of weight 1, if both wait"
    )
    limits: Limits = Limits()
    models: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="names, or beginnings of names as `llama-*`; empty: all"
    )
    service_tiers: tuple[TierName, ...] = Field(
        ("priority", "default", "flex"), min_length=1, description="what may be asked for"
    )
    default_tier: TierName | None = Field(None, description="for who asks for none (`auto`); null: default")
    tenant_class: str = Field("default", pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$", description="as a label of metrics")
    trusted: bool = Field(False, description="as server.trusted, for this tenant")
    isolate_cache: bool = Field(
        False, description="its prompts share no prefix cache with others' (vLLM's cache_salt); needs auth.pepper"
    )

    @model_validator(mode="after")
    def _no_contradiction(self) -> Self:
        problems = list(_tenant_problems(self))
        if problems:
            raise refusal("tenant", problems)
        return self


def named_secrets(text: str) -> list[tuple[str, str]]:
    """(tenant, key) of `auth.secret_keys`; raises ValueError without showing any of it."""
    found: list[tuple[str, str]] = []
    for number, entry in enumerate(text.replace(",", " ").split(), 1):
        tenant, separator, key = entry.partition("=")
        if not separator or not tenant or not key:
            raise ValueError(f"entry {number} is not TENANT=KEY; separate entries by spaces")
        if len(key) < _SHORTEST_KEY or not (key.isascii() and key.isprintable()):
            raise ValueError(f"the key of entry {number} is shorter than {_SHORTEST_KEY} characters or cannot be sent")
        found.append((tenant, key))
    if not found:
        raise ValueError("no entry; write TENANT=KEY")
    return found


def tenancy_problems(auth: Auth, tenants: Sequence[Tenant]) -> Iterator[Problem]:
    """Contradictions between the two sections."""
    if tenants and not auth.on:
        what = "nobody can be told apart without keys; set auth.keys_file (docs/tenants.md), or remove this"
        yield ("tenants",), what
    names: dict[str, int] = {}
    for index, tenant in enumerate(tenants):
        first = names.setdefault(tenant.name, index)
        if first != index:
            yield ("tenants", index, "name"), f"{tenant.name!r} is tenants[{first}] already; a tenant has one entry"
        if tenant.isolate_cache and auth.pepper is None:
            yield ("tenants", index, "isolate_cache"), "needs auth.pepper: what keeps caches apart is derived from it"
    if len({tenant.tenant_class for tenant in tenants}) > MAX_CLASSES:
        yield ("tenants",), f"more than {MAX_CLASSES} values of tenant_class; it labels metrics, so keep them few"


def _auth_problems(auth: Auth) -> Iterator[Problem]:
    if not auth.on and (auth.metrics or auth.pepper is not None):
        what = "nobody is asked for a key while there is none; set it, or `keys`, `secret_keys` or `keys_redis`"
        yield ("keys_file",), what
    if auth.pepper is not None and len(auth.pepper) < _SHORTEST_PEPPER:
        what = f"shorter than {_SHORTEST_PEPPER} characters, so it could be guessed; `openssl rand -hex 32` makes one"
        yield ("pepper",), what
    if auth.secret_keys is not None:
        try:
            named_secrets(auth.secret_keys)
        except ValueError as error:
            yield ("secret_keys",), str(error)
    seen: dict[str, int] = {}
    for index, key in enumerate(auth.keys):
        first = seen.setdefault(key.id, index)
        if first != index:
            yield ("keys", index, "id"), f"{key.id!r} is keys[{first}]'s already; ids tell keys apart in logs"
        if not _in_order(key.not_before, key.expires):
            yield ("keys", index, "expires"), "is not after not_before, so the key is never good"


def _tenant_problems(tenant: Tenant) -> Iterator[Problem]:
    wanted = tenant.default_tier or "default"
    if wanted not in tenant.service_tiers:
        what = f"{wanted!r}, for who asks for none, is not among service_tiers; name one of {', '.join(tenant.service_tiers)}"
        yield ("default_tier",), what
    for index, pattern in enumerate(tenant.models):
        if "*" in pattern[:-1]:
            what = f"{pattern!r} has a * that is not its end; write a name, or its beginning and *"
            yield ("models", index), what


def _in_order(first: datetime | None, second: datetime | None) -> bool:
    return first is None or second is None or first < second
