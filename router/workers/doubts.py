"""What a worker has against replicas, for the other workers of its gateway, and what they have; where Redis has the book, that has it all.

Decides only when to say it: at once where it has changed.
"""

import asyncio
from collections.abc import Callable, Mapping

from batching.shares import HolderId
from router.shared.suspicion import TOPIC, Accusations
from router.suspicion import Suspicion


class WorkerSuspicion:
    """`begin` once there is something to be suspicious of; what was heard before is not lost."""

    def __init__(self, say: Callable[[bytes], None]) -> None:
        self._say = say
        self._said = b""
        self._heard: dict[HolderId, bytes] = {}
        self._accusations: Accusations | None = None

    def begin(self, suspicion: Suspicion) -> None:
        """Inside the loop."""
        self._accusations = Accusations(suspicion)
        suspicion.on_found = self._soon
        self._accusations.take(self._heard)

    def hear(self, topic: str, by: Mapping[HolderId, bytes]) -> None:
        """All that the other workers say on it."""
        if topic != TOPIC:
            return
        self._heard = dict(by)
        if self._accusations is not None:
            self._accusations.take(self._heard)

    def _soon(self) -> None:
        asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        """After whatever may have changed it."""
        if self._accusations is not None and (body := self._accusations.said()) != self._said:
            self._said = body
            self._say(body)
