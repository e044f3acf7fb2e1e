"""A second attempt's answer, of which the beginning has been read to see that there is one."""

from collections.abc import AsyncIterator

from backends.backend import EngineReply, PulledReply


class Resumed(PulledReply):
    """A reply whose beginning was read already: it is given once more, then the rest."""

    def __init__(self, reply: EngineReply, beginning: list[bytes], rest: AsyncIterator[bytes]) -> None:
        self.status = reply.status
        self.content_type = reply.content_type
        self.headers = reply.headers
        self._reply = reply
        self._beginning = beginning
        self._rest = rest

    async def body(self) -> AsyncIterator[bytes]:
        while self._beginning:
            yield self._beginning.pop(0)
        async for data in self._rest:
            yield data

    async def aclose(self) -> None:
        await self._reply.aclose()
