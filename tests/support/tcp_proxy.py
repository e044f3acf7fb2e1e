"""Stands between two that speak TCP and cuts them off from each other: by silence, or by refusing."""

import asyncio
from types import TracebackType
from typing import Self


class TcpProxy:
    """Listens on a port of its own; an async context manager. What it passes it does not read."""

    def __init__(self, port: int) -> None:
        """`port`: where it leads to, on this machine."""
        self.port = 0
        self._to = port
        self._passes = asyncio.Event()
        self._passes.set()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def silence(self) -> None:
        """From now on nothing passes, in either direction; connections stand, and new ones are accepted."""
        self._passes.clear()

    def heal(self) -> None:
        """What was held back passes."""
        self._passes.set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accepted, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task: asyncio.Task[None] | None = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        onward: asyncio.StreamWriter | None = None
        try:
            back, onward = await asyncio.open_connection("127.0.0.1", self._to)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pass(reader, onward))
                both.create_task(self._pass(back, writer))
        except* (OSError, asyncio.CancelledError):
            pass  # one of the two has gone, or the test is over
        finally:
            self._tasks.discard(task)
            for end in (writer, onward):
                if end is not None:
                    end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._passes.wait()
            writer.write(data)
            await writer.drain()
        raise ConnectionResetError
