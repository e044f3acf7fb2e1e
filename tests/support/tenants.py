"""Keys and tenants for tests: a configuration that asks for keys, without a file."""

from collections.abc import Mapping
from typing import Any

from config.schema import Config
from config.tenants import Scope
from router.tenants.keys import digest_of
from tests.support.gateways import fake_config


def key_for(tenant: str, *scopes: Scope) -> str:
    """The same every time, and long enough."""
    return f"psk-{tenant}-{'-'.join(scope.name.lower() for scope in scopes) or 'inference'}-0123456789abcdef"


def inline(tenant: str, *scopes: Scope, **record: Any) -> dict[str, Any]:
    """The record of `key_for`, as the configuration has it."""
    digest = digest_of(key_for(tenant, *scopes).encode(), None).hex()
    id_ = f"{tenant}-{len(scopes)}{scopes[0].value[-3:] if scopes else ''}"[:16].replace(":", "")
    return {"id": id_, "tenant": tenant, "sha256": digest, "scopes": list(scopes or [Scope.INFERENCE]), **record}


def asking(engines: Mapping[str, Any], *keys: dict[str, Any], **sections: Any) -> Config:
    """Over fake engines; `acme` and `umbrella` have keys for inference."""
    auth = {"keys": [*(keys or (inline("acme"), inline("umbrella")))], **sections.pop("auth", {})}
    return fake_config(engines, auth=auth, **sections)


def bearer(key: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {key}")
