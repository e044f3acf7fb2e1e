"""What a tenant may ask for: models and service tiers. Pure."""

import hmac
from collections.abc import Iterable
from hashlib import blake2b

from config.tenants import Tenant

_SALT_BYTES = 16


def may_use(policy: Tenant, model: str) -> bool:
    """By exact name, or by a beginning that the entry names with a * behind it."""
    if not policy.models:
        return True
    return any(model.startswith(entry[:-1]) if entry.endswith("*") else model == entry for entry in policy.models)


def tier_of(policy: Tenant, asked: str | None) -> str | None:
    """The service tier of a request that asked for this one (None, `auto`: for none); None: it may not have that."""
    tier = asked or policy.default_tier or "default"
    return tier if tier in policy.service_tiers else None


def cache_salt(pepper: bytes, tenant: str) -> str:
    """The same in every gateway that has the pepper, and nobody else's to guess."""
    return hmac.digest(pepper, b"penstock cache " + tenant.encode(), "sha256")[:_SALT_BYTES].hex()


def apart(salt: str, chunks: Iterable[int]) -> tuple[int, ...]:
    """Hashes of a prompt's beginning, as of a prompt that is nobody else's; the same in every process that has the salt.

    Each tenant's are moved by 64 secret bits of its own: who knows neither them nor the prompt finds nothing that he could compare.
    """
    moved = int.from_bytes(blake2b(salt.encode(), digest_size=8, person=b"penstock chunks").digest(), "big")
    return tuple([chunk ^ moved for chunk in chunks])
