"""Who asks: the key that was found good, whose it is, and what that tenant may do."""

from dataclasses import dataclass

from config.tenants import Scope, Tenant
from router.tenants.keys import BITS


@dataclass(frozen=True, slots=True)
class Caller:
    """Of one request. `policy` is the tenant's own entry, or that of all others."""

    tenant: str
    key_id: str
    mask: int
    policy: Tenant

    def has(self, scope: Scope) -> bool:
        return bool(self.mask & BITS[scope])

    @property
    def trusted(self) -> bool:
        return self.policy.trusted or self.has(Scope.TRUSTED)
