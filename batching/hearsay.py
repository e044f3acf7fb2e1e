"""What other gateways hold against replicas, as far as they are heard (pure): what of it is news, and whose word is good.

An accusation is a reason to ask, never more. Each is acted on once, when it is first heard; it lapses when its gateway takes it back,
or is not heard any more. A gateway whose word was refuted here is believed less for a while: one that is itself cut off from engines
accuses all of them, and must not make everybody pause.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from batching.request import ReplicaId
from batching.shares import HolderId

_WRONG_S: Final = 120.0  # four times the longest pause of a breaker: it has said it again by then, or is well


class Accusation(NamedTuple):
    """One gateway's, of one replica."""

    by: HolderId
    replica: ReplicaId
    reason: str
    credible: bool  # nothing that its gateway said lately was refuted


@dataclass(slots=True)
class News:
    """What one hearing brought."""

    accusations: list[Accusation] = field(default_factory=list)
    lapsed: set[ReplicaId] = field(default_factory=set)  # nobody accuses them any more
    cleared: set[ReplicaId] = field(default_factory=set)  # of them, those that a gateway which is heard took back


class Hearsay:
    """`take` all that is heard, each time; times in seconds of one clock."""

    def __init__(self) -> None:
        self._standing: dict[HolderId, dict[ReplicaId, str]] = {}
        self._wrong_s: dict[HolderId, float] = {}  # when its word was last refuted

    def take(self, heard: Mapping[HolderId, Mapping[ReplicaId, str]], now: float) -> News:
        """`heard`: all gateways that are, with the reasons they have against replicas; who has none is there, too."""
        self._wrong_s = {by: at for by, at in self._wrong_s.items() if now - at < _WRONG_S}
        before, self._standing = self._standing, {by: dict(accused) for by, accused in heard.items()}
        news = News()
        for by, accused in self._standing.items():
            known = before.get(by, {})
            news.accusations += [
                Accusation(by, replica, reason, by not in self._wrong_s)
                for replica, reason in accused.items()
                if replica not in known
            ]
        for by, accused in before.items():
            for replica in accused:
                if not self.stands(replica):
                    news.lapsed.add(replica)
                    if by in self._standing:
                        news.cleared.add(replica)
        return news

    def stands(self, replica: ReplicaId) -> bool:
        """Whether anybody accuses it now."""
        return any(replica in accused for accused in self._standing.values())

    def refuted(self, replica: ReplicaId, now: float) -> None:
        """It was asked for their sake, and lives: whoever accuses it was wrong."""
        for by, accused in self._standing.items():
            if replica in accused:
                self._wrong_s[by] = now
