"""Who asks: the key that was found good, whose it is, and what that tenant may do."""

import msgspec

from config.tenants import Scope, Tenant
from router.tenants.keys import BITS

_INFERENCE = BITS[Scope.INFERENCE]  # of every request, so it is not looked up


class Caller(msgspec.Struct, frozen=True):
    """Of one request. `policy` is the tenant's own entry, or that of all others."""

    tenant: str
    key_id: str
    mask: int
    policy: Tenant

    def has(self, scope: Scope) -> bool:
        return bool(self.mask & (_INFERENCE if scope is Scope.INFERENCE else BITS[scope]))

    @property
    def trusted(self) -> bool:
        return self.policy.trusted or self.has(Scope.TRUSTED)
