"""The other workers of this gateway, as the HTTP surface sees them; one process alone has none (docs/workers.md)."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from batching.request import ReplicaId
from metrics.pages import Page
from router.board.part import Part, Wanted
from router.decision_documents import Document
from router.decision_log import Asked
from router.standing import Left, Word
from router.usage_query import Asked as UsageAsked
from router.usage_query import Found


class Crew(Protocol):
    """One worker's view of all. Questions are answered in seconds, without those who do not reply."""

    @property
    def seat(self) -> int:
        """Which of them this one is, from 1."""
        ...

    @property
    def live(self) -> int:
        """How many there are now."""
        ...

    @property
    def seats(self) -> int:
        """How many there should be."""
        ...

    async def pages(self) -> Sequence[Page]:
        """Everybody's figures, this one's too, and what those who are gone had counted."""
        ...

    async def decisions(self, asked: Asked) -> list[Document]:
        """Everybody's, newest first."""
        ...

    async def parts(self, wanted: Wanted) -> Sequence[Part]:
        """Everybody's part of the board, this one's too."""
        ...

    async def tell(self, word: Word) -> Left:
        """Everybody, and whoever comes later; what they still have on their replicas."""
        ...

    def over(self, replica: ReplicaId, why: str) -> None:
        """Everybody; nobody waits until they know."""
        ...

    async def left(self) -> Left:
        """What everybody has on the replicas; where somebody does not reply, none is released."""
        ...

    async def register(self, name: str, replica: Mapping[str, object] | None) -> None:
        """An engine that called in, as in the configuration; None: it is over. Who comes later learns it when it is renewed."""
        ...

    async def usage(self, asked: UsageAsked) -> Found | None:
        """What all have used, those who are gone included; None: the book does not answer."""
        ...
