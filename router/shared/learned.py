"""What this gateway has learned, put down for those that come later; and what it begins from when it is new itself.

Decides when; what is worth how much is `batching.experience`'s. Nothing waits for it but the start, for one call's time at most.
"""

import asyncio
import logging
from typing import Final

from batching.experience import Experience
from batching.learned import Learned, Unusable, merged, packed, unpacked
from batching.shared_holder import SharedHolder
from metrics.catalog import Metrics
from router.shared.redis_line import Unreachable
from router.shared.shelf import Shelf

log = logging.getLogger("penstock.shared")

_EVERY_S: Final = 30.0  # so much is lost with a gateway that is killed


class SharedLearned:
    """`begin` before anything is placed, `run` as long as the gateway serves, `leave` at its end. A `budgets.Topic` as well."""

    def __init__(self, shelf: Shelf, experience: Experience, metrics: Metrics, name: str) -> None:
        self._shelf = shelf
        self._experience = experience
        self._metrics = metrics
        self._name = name
        self._has_read = False

    async def begin(self) -> None:
        """From what there is; never fails."""
        try:
            kept = await self._shelf.read()
        except Unreachable as error:
            self._metrics.redis_errors_total.labels(error.kind).inc()
            log.info("what other gateways have learned is not known (%s): this one begins with its priors", error)
            return
        self._has_read = True
        usable: list[tuple[float, Learned]] = []
        unusable: list[str] = []
        for name, age_ms, body in kept:
            try:
                usable.append((age_ms / 1000, unpacked(body)))
            except Unusable as error:
                unusable.append(f"of {name}: {error}")
        if unusable:
            log.warning("what was learned before is ignored where it cannot be used: %s", "; ".join(unusable))
        found = merged(usable)
        self._experience.begin(found)
        if usable:
            kinds, replicas = len(found.answers), len(found.replicas)
            text = "begins from what %d gateways have learned: of %d kinds of answers and %d replicas"
            log.info(text, len(usable), kinds, replicas)

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            if not self._has_read:
                await self.begin()
            await self._put()

    async def leave(self) -> None:
        """The last of it, if Redis takes it at once."""
        await self._put()
        await self._shelf.aclose()

    def say(self, holder: SharedHolder) -> None:  # noqa: ARG002 - nothing is said with a report
        """Whatever replica has come has no share before the next report: it begins from what is known before anything is placed there."""
        self._experience.settle()

    def hear(self, holder: SharedHolder) -> None:
        """Nothing is."""

    async def _put(self) -> None:
        try:
            await self._shelf.put(self._name, packed(self._experience.told()))
        except Unreachable as error:
            self._metrics.redis_errors_total.labels(error.kind).inc()
