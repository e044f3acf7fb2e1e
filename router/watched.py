"""One replica under watch: what it was configured as, how it is spoken to, what was last seen of it. A record; it decides nothing."""

import asyncio
from dataclasses import dataclass, field

from backends.backend import Backend, ProbeResult
from batching.replica import Lifecycle
from batching.request import ReplicaId
from config.schema import ReplicaConfig


@dataclass(slots=True, eq=False)
class Watched:
    """One replica under watch."""

    config: ReplicaConfig
    backend: Backend
    lifecycle: Lifecycle = Lifecycle.STARTING
    failures: int = 0
    detail: str = "not probed yet"  # of the last look
    doubt: str = ""  # why it is out of service although its looks are fine; empty: it is not
    models_seen: set[str] = field(default_factory=set)  # ever served while ready
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    suspected: bool = False  # a connection failed: one bad look is believed
    load_told_s: float = float("-inf")
    ledger_only: bool | None = None  # as it was last said in the log; None: nothing was said yet
    known: ProbeResult | None = None  # all that this backend ever told
    task: asyncio.Task[None] | None = None
    leaving: Lifecycle | None = None  # kept in it, or in DRAINING, by whoever said so (router.farewell)

    @property
    def id(self) -> ReplicaId:
        return ReplicaId(self.config.name)

    @property
    def why(self) -> str:
        """Why it is not ready, for people."""
        return self.doubt or self.detail
