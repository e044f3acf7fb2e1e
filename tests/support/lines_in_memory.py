"""Workers' lines to their hub without a socket, so that they run in virtual time, and whole gateways that share by them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import cast

from metrics.pages import Page
from router.standing import Left
from router.usage_book import Bounds, UsageBook
from router.workers.hub import Hub
from router.workers.link import Link, Orders
from router.workers.share_client import ShareClient
from tests.support.gateways import Running


class _Transport:
    def __init__(self) -> None:
        self.closed = False

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0


class _Writer:
    """Into somebody's reader."""

    def __init__(self, to: asyncio.StreamReader) -> None:
        self._to = to
        self.transport = _Transport()

    def write(self, data: bytes) -> None:
        self._to.feed_data(data)

    def close(self) -> None:
        if not self.transport.closed:
            self.transport.closed = True
            self._to.feed_eof()


@asynccontextmanager
async def sharing_as_workers(gateways: Sequence[Running]) -> AsyncIterator[Hub]:
    """A hub, and a line to it from each gateway, over which it shares its replicas with the others."""
    hub = Hub(len(gateways), lambda _seat, _banner: None, UsageBook(Bounds(), 0))
    async with asyncio.TaskGroup() as tasks:
        work: list[asyncio.Task[None]] = []
        clients: list[ShareClient] = []
        for seat, running in enumerate(gateways, 1):
            to_hub, to_worker = asyncio.StreamReader(), asyncio.StreamReader()
            work.append(tasks.create_task(hub._converse(to_hub, cast(asyncio.StreamWriter, _Writer(to_worker)))))
            link = Link(seat, to_worker, cast(asyncio.StreamWriter, _Writer(to_hub)))
            clients.append(client := ShareClient(running.gateway.admission, link))
            work.append(tasks.create_task(link.run(_orders(client))))
            client.begin(lambda: None)
        try:
            yield hub
        finally:
            for client in clients:
                client.close()
            for task in work:
                task.cancel()


def _orders(client: ShareClient) -> Orders:
    """Only what shares and service need."""
    return Orders(
        stop=lambda _now: None, reload=lambda: None, orphaned=lambda: None, answer=client.take, served=client.hear, beside=client.beside,
        granted=lambda _number, _grants: None, page=lambda: Page({}, {}, {}), decisions=lambda _asked: [],
        board=lambda _wanted: b"", left=Left, registered=lambda _name, _replica: None, told=lambda _word: None, heard=lambda _topic, _by: None, used=list,
    )  # fmt: skip
