"""Tells the other processes of a fleet what this one learned of prefix caches, and folds in what they tell: one background task.

Decides when, how much at a time, and what is made of a failure: then each believes what it has itself. What is worth telling is
`batching.prefix_journal`'s, where it is kept meanwhile is the line's. No request waits for it.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from batching.prefix_belief import PrefixBelief
from batching.prefix_journal import CHUNK_BYTES, Word, words_of
from batching.prefix_log import KEEP_BYTES, MOST_BYTES, Told
from config.shared import SharedRedis
from router.shared.redis_line import RedisLine, Unreachable
from router.shared.scripts import TELL
from router.shared.seal import Seal

log = logging.getLogger("penstock.shared")

_PAUSE_S: Final = 0.25  # what one process has placed all know within twice that
_AGAIN_S: Final = 1.0  # after a failure
# Of one digest: 64 KB a second, the chunks of half a million tokens of prompts, which no process places.
_MOST_CHUNKS: Final = 2048
_FOLDED_BYTES: Final = 1024 * CHUNK_BYTES  # in one go: a millisecond or two, then others have their turn


class PrefixLine(Protocol):
    """Where digests are exchanged (`batching.prefix_log.PrefixLog`), seen from one process."""

    async def exchange(self, digest: bytes, after: int) -> Told:
        """Raises Unreachable."""
        ...

    async def aclose(self) -> None: ...


class PrefixesInRedis:
    """`PrefixLine`, on a line of its own: a page of digests holds nobody's report of shares up."""

    def __init__(self, config: SharedRedis, holder: str) -> None:
        """`holder`: unlike any other process'."""
        self._line = RedisLine(config)
        self._keys = [self._line.key("prefixes"), self._line.key("prefixes-size")]
        self._holder = holder

    async def exchange(
        self, digest: bytes, after: int, *, keep: int = KEEP_BYTES, most: int = MOST_BYTES, now_ms: int | None = None
    ) -> Told:
        """`now_ms`: in tests, in place of Redis' own."""
        arguments = (self._holder, digest, after, most, keep, "" if now_ms is None else now_ms)
        after, more, digests = await self._line.asked(TELL, self._keys, arguments)
        return Told(after, bool(more), digests)

    async def aclose(self) -> None:
        await self._line.aclose()


class SharedPrefixes:
    """`run` as long as the process serves, then `leave`."""

    def __init__(
        self,
        line: PrefixLine,
        belief: PrefixBelief,
        *,
        seal: Seal | None = None,
        on_failure: Callable[[Unreachable], None] = lambda _error: None,
    ) -> None:
        """`seal`: what goes over the line can be read by others than this fleet's processes."""
        self._line = line
        self._belief = belief
        self._journal = belief.journal()
        self._seal = seal
        self._on_failure = on_failure
        self._untold = b""  # a digest that has not certainly arrived
        self._after = 0
        self._old = True  # what is heard was said before this process began
        self._refused = self._warned = False

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            try:
                more = await self._exchange()
            except Unreachable as error:
                self._failed(error)
                await asyncio.sleep(_AGAIN_S)
                continue
            self._refused = False
            if not more:
                self._old = False
                await asyncio.sleep(_PAUSE_S)

    async def leave(self) -> None:
        await self._line.aclose()

    async def _exchange(self) -> bool:
        """Whether more is there to be heard. Raises Unreachable."""
        if not self._untold and (digest := self._journal.digest(_MOST_CHUNKS)):
            self._untold = digest if self._seal is None else self._seal.closed(digest)
        told = await self._line.exchange(self._untold, self._after)
        self._untold, self._after = b"", told.after
        for digest in told.digests:
            await self._fold(digest)
        return told.more

    async def _fold(self, digest: bytes) -> None:
        opened = digest if self._seal is None else self._seal.opened(digest)
        try:
            words = [] if opened is None else words_of(opened)
        except msgspec.MsgspecError:
            opened, words = None, []
        if opened is None:
            self._warn_once()
        for word in words:
            self._belief.fold(_part(word, 0), old=self._old)
            for start in range(_FOLDED_BYTES, max(len(word.held), len(word.lost)), _FOLDED_BYTES):
                await asyncio.sleep(0)
                self._belief.fold(_part(word, start), old=self._old)
        await asyncio.sleep(0)

    def _failed(self, error: Unreachable) -> None:
        self._on_failure(error)
        if error.kind == "refused" and not self._refused:  # that nobody answers the shares' report says, too
            self._refused = True
            log.warning(
                "what others know of prefix caches is not heard: %s. Does Redis' user have +@stream, +get, +set and +pexpire? (docs/gateways.md)",
                error,
            )

    def _warn_once(self) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "another gateway's digest of prefix caches cannot be read; all need the same auth.pepper, and one release"
            )


def _part(word: Word, start: int) -> Word:
    """As much of it as is folded in one go; what was forgot, was so before all of it."""
    end = start + _FOLDED_BYTES
    return Word(word.replica, word.limit, word.forgot and not start, word.held[start:end], word.lost[start:end])
