"""What tenants were served and want, said and heard with the reports that gateways make to Redis anyway (`batching.service` knows what it means).

Decides nothing. Every process is a teller of its own: the workers of one gateway hear each other here, too.
"""

import asyncio
from typing import Final

from batching.service import Service
from batching.shared_holder import SharedHolder

_TOPIC: Final = "service"


class SharedFairness:
    """One process's part; `instance` is like no other's. A `Topic` of the shared budgets."""

    def __init__(self, service: Service, instance: str) -> None:
        self._service = service
        self._instance = instance

    def say(self, holder: SharedHolder) -> None:
        """Before each report."""
        holder.more[_TOPIC] = self._service.tell(self._instance, asyncio.get_running_loop().time())

    def hear(self, holder: SharedHolder) -> None:
        """After each; what was heard before is no news."""
        self._service.hear(holder.heard(_TOPIC).values(), asyncio.get_running_loop().time())
