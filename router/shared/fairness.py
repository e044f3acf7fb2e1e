"""Service to tenants, said and heard with the reports that gateways make to Redis anyway (`batching.service` knows what it means).

Decides nothing. Every process is a teller of its own: the workers of one gateway hear each other here, too.
"""

from typing import Final

from batching.service import Service
from batching.shared_holder import SharedHolder

_TOPIC: Final = "service"


class SharedFairness:
    """One process's part."""

    def __init__(self, service: Service, holder: SharedHolder, instance: str) -> None:
        self._service = service
        self._holder = holder
        self._instance = instance

    def say(self, now_s: float) -> None:
        """Before a report."""
        self._holder.more[_TOPIC] = self._service.tell(self._instance, now_s)

    def hear(self, now_s: float) -> None:
        """After an answer."""
        self._service.hear(self._holder.heard(_TOPIC).values(), now_s)
