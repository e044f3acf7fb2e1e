"""A notice source: one thing to look at again and again; and the loop that looks, whatever the service answers."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, Protocol

from backends.backoff import Backoff
from backends.spot_agent.metadata import MetadataError
from backends.spot_agent.notice import Notice, Reading
from backends.spot_agent.payloads import UnreadableError

log = logging.getLogger("penstock.spot_agent")

# The shortest notice is 30 s: five seconds between tries leave room for a drain, and do not burden a service that is ill.
_RETRY_S: Final = 0.5
_RETRY_MAX_S: Final = 5.0

Wall = Callable[[], float]  # unix seconds: clouds say deadlines in wall time


class NoticeSource(Protocol):
    """One thing a cloud says about this machine. Looking twice is harmless."""

    @property
    def name(self) -> str:
        """For the log; of each source its own."""
        ...

    @property
    def interval_s(self) -> float:
        """From the end of one look to the next."""
        ...

    async def look(self) -> Reading:
        """What stands now; may wait for a change. Raises MetadataError or UnreadableError, and may be asked again."""
        ...

    async def hasten(self, notices: Sequence[Notice]) -> None:
        """The machine is empty: where the cloud waits for a word, say it. Raises MetadataError."""
        ...


async def standing(source: NoticeSource) -> AsyncIterator[tuple[Notice, ...]]:
    """What stands, after each look; without end.

    A look that fails changes nothing: what stood, stands. It is logged once, and tried again soon.
    """
    backoff = Backoff(_RETRY_S, _RETRY_MAX_S)
    failure = ""
    remarks: tuple[str, ...] = ()
    while True:
        try:
            reading = await source.look()
        except (MetadataError, UnreadableError) as error:
            if str(error) != failure:
                failure = str(error)
                log.warning("%s: %s; trying again", source.name, failure)
            await asyncio.sleep(backoff.next_s())
            continue
        if failure:
            log.info("%s: answers again", source.name)
            failure = ""
        backoff.reset()
        if reading.remarks != remarks:
            remarks = reading.remarks
            for remark in remarks:
                log.info("%s: %s", source.name, remark)
        yield reading.notices
        await asyncio.sleep(source.interval_s)


class Reader:
    """Reads a payload; the same text gives the same notices, so that what was first seen then stays so."""

    def __init__(self, parse: Callable[[str, float], Reading], wall: Wall) -> None:
        self._parse = parse
        self._wall = wall
        self._body: str | None = None
        self._reading = Reading()

    def read(self, body: str | None) -> Reading:
        """None: the service says that there is nothing. Raises UnreadableError."""
        if body != self._body:
            self._reading = Reading() if body is None else self._parse(body, self._wall())
            self._body = body
        return self._reading
