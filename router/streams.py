"""What the watch wants to know of the streams on a replica, and asks for them: the seam between it and the dispatcher."""

from typing import Protocol

from batching.request import ReplicaId


class Streams(Protocol):
    """What runs on a replica now, and how it is moved; the dispatcher's."""

    def move_off(self, replica: ReplicaId, *, by_s: float | None) -> None:
        """None: the engine is dead or frozen, everything there goes on elsewhere at once."""

    def requests_on(self, replica: ReplicaId) -> int:
        """Attempts under way."""

    def last_bytes_s(self, replica: ReplicaId) -> float | None:
        """When any stream there that has had its first token got bytes last (loop time); None: there is no such stream."""
