"""What this gateway has against replicas, for the others, and what they have: packed, small, and said at once.

Decides nothing about replicas: `router.suspicion` does. Who is not heard any more has said nothing.
"""

import logging
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from batching.request import ReplicaId
from batching.shared_holder import Mode, SharedHolder
from batching.shares import HolderId
from router.suspicion import Suspicion

log = logging.getLogger("penstock.shared")

TOPIC: Final = "suspicion"
_MOST: Final = 32  # replicas in one report: whoever doubts more has a trouble of its own
_LONGEST_REASON: Final = 40
_HEARD = frozenset({Mode.REDIS, Mode.LAST_LEASE})

Accused = dict[ReplicaId, str]  # in a word, why
_encode: Final = msgspec.msgpack.Encoder(order="sorted").encode
_decode: Final = msgspec.msgpack.Decoder(Accused).decode


class Accusations:
    """Both ways, whatever carries them."""

    def __init__(self, suspicion: Suspicion) -> None:
        self._suspicion = suspicion
        self._heard: dict[HolderId, bytes] = {}

    def said(self) -> bytes:
        """All that is held against replicas now; empty: nothing."""
        found = sorted(self._suspicion.findings().items())[:_MOST]
        return _encode({replica: reason[:_LONGEST_REASON] for replica, reason in found}) if found else b""

    def take(self, heard: Mapping[HolderId, bytes]) -> None:
        """All that others say, whether it has changed or not."""
        if heard == self._heard:
            return
        self._heard = dict(heard)
        self._suspicion.heard({by: self._unpacked(by, body) for by, body in heard.items()})

    def _unpacked(self, by: HolderId, body: bytes) -> Accused:
        if not body:
            return {}
        try:
            return _decode(body)
        except msgspec.DecodeError as error:
            log.warning("what %s says of replicas cannot be read (%s), and is ignored", by, error)
            return {}


class SharedSuspicion:
    """`budgets.Topic`. `soon` asks for a report before its time."""

    def __init__(self, suspicion: Suspicion, soon: Callable[[], None]) -> None:
        self._accusations = Accusations(suspicion)
        suspicion.on_found = soon

    def say(self, holder: SharedHolder) -> None:
        body = self._accusations.said()
        holder.calling = holder.calling or body != holder.more.get(TOPIC, b"")
        holder.more[TOPIC] = body

    def hear(self, holder: SharedHolder) -> None:
        self._accusations.take(holder.heard(TOPIC) if holder.mode in _HEARD else {})
