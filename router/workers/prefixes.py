"""Digests of prefix caches between the workers of one gateway: over the line to the hub, which keeps them for those that start later."""

from batching.prefix_log import Told
from router.shared.redis_line import Unreachable
from router.workers.link import Link


class PrefixesOverHub:
    """`router.shared.prefixes.PrefixLine`."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def exchange(self, digest: bytes, after: int) -> Told:
        told = await self._link.prefixes(digest, after)
        if told is None:
            raise Unreachable("connection", "the supervisor does not answer")
        return told

    async def aclose(self) -> None:
        pass  # the line is the worker's
