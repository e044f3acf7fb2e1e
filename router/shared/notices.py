"""Drains and spot notices that one gateway was told of, for all of them and for those that start later.

Decides what is new, here and there. What two words about one replica come to is `router.standing`'s, what is done about it `router.farewell`'s.
A restore is a word, too: what is missing in Redis was lost there, and is said again by whoever knows it. Deadlines travel as
milliseconds on Redis' clock, so that hosts' clocks need not agree.
"""

import asyncio
from dataclasses import dataclass
from typing import Final

import msgspec

from batching.request import ReplicaId
from router.farewell import Farewells
from router.shared.book_in_redis import Book, Heard
from router.standing import Standing, Word, is_repeat, joined

_OVER_S: Final = 600.0  # so long after its deadline a machine is gone, and a notice of it is about nobody


@dataclass(frozen=True, slots=True)
class _Known:
    """What stands, by the last word; deadlines on this loop's clock."""

    number: int
    standing: Standing | None


class SharedNotices:
    """`say` what was told here; `take` what Redis has; `tell` it what it does not."""

    def __init__(self, book: Book, farewells: Farewells) -> None:
        self.stamp = b"never"  # of what was last taken: until then whatever there is is new
        self._book = book
        self._farewells = farewells
        self._known: dict[str, _Known] = {}
        self._there: dict[str, int] = {}  # numbers in Redis when it was last read
        self._untold: dict[str, Standing | None] = {}

    def say(self, word: Word) -> None:
        """It has effect here already; `word.standing` counts from now."""
        now = asyncio.get_running_loop().time()
        if word.standing is not None:
            local = self._farewells.standing(ReplicaId(word.replica))
            self._untold[word.replica] = word.standing.at(now) if local is None else local
        elif word.replica in self._known or word.replica in self._untold:
            self._untold[word.replica] = None

    def take(self, heard: Heard) -> None:
        """All that is written there, where anything has changed."""
        if heard.notices is None:
            return
        self.stamp = heard.stamp
        now, now_ms = asyncio.get_running_loop().time(), heard.reply.now_ms
        found = {name.decode(): body for name, body in heard.notices.items() if name}
        self._there = {}
        for replica, packed in found.items():
            number, standing = _unpacked(packed, now, now_ms)
            self._there[replica] = number
            known = self._known.get(replica)
            if known is not None and number < known.number:
                self._untold.setdefault(replica, known.standing)  # what was said since was lost
            elif known is None or number > known.number:
                self._known[replica] = _Known(number, standing)
                self._apply(replica, standing)
        for replica, known in self._known.items():
            if replica not in found and known.standing is not None:
                self._untold.setdefault(replica, known.standing)

    async def tell(self) -> None:
        """What is not written there yet; where another was faster, the next reading says what is to be joined. Raises Unreachable."""
        for replica, standing in list(self._untold.items()):
            now = asyncio.get_running_loop().time()
            left_ms: int | None = None
            if standing is not None and standing.deadline_s is not None:
                left_ms = int((standing.deadline_s - now) * 1000)
            body = b"" if standing is None else msgspec.json.encode(standing.at(-now))
            number = await self._book.note(replica, self._there.get(replica, 0), body, left_ms)
            if number < 0:
                self.stamp = b"never"  # whatever it is now
                continue
            if self._untold.get(replica) is standing:  # nothing was said while it was being told
                del self._untold[replica]
            self._there[replica] = number
            self._known[replica] = _Known(number, standing)

    def _apply(self, replica: str, standing: Standing | None) -> None:
        """What another gateway was told."""
        local = self._farewells.standing(ReplicaId(replica))
        if replica in self._untold:
            own = self._untold[replica]
            if own is None or standing is None:
                if own is standing:
                    del self._untold[replica]  # both say that it may work again
                return
            standing = self._untold[replica] = joined(standing, own)
        if standing is None:
            if local is not None:
                self._farewells.told(ReplicaId(replica), None)
        elif local is None or not (is_repeat(local, standing) and is_repeat(standing, local)):
            self._farewells.told(ReplicaId(replica), standing)


def _unpacked(packed: bytes, now: float, now_ms: int) -> tuple[int, Standing | None]:
    """(its number, what stands on this loop's clock)."""
    number, body, deadline_ms = msgspec.msgpack.decode(packed)
    if not body:
        return number, None
    standing = msgspec.json.decode(body, type=Standing)
    if not deadline_ms:
        return number, standing
    left_s = (deadline_ms - now_ms) / 1000
    if left_s < -_OVER_S and standing.ends_with_the_machine:
        return number, None
    return number, msgspec.structs.replace(standing, deadline_s=now + left_s)
