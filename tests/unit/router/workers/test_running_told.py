"""What a worker has running reaches the others over the supervisor, and is gone with it."""

import asyncio
from pathlib import Path

from batching.request import ReplicaId
from batching.shares import WHOLE, Claim, Running
from config.schema import Usage
from router.usage_book import UsageBook
from router.workers.hub import Hub
from router.workers.wire import Answer, Beside, Hello, Report, Runs, ToWorker, send, to_worker
from tests.support.patience import PATIENCE_S

A = ReplicaId("a")


async def joined(path: Path, seat: int, *, enforced: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """On the book, with an answer."""
    reader, writer = await asyncio.open_unix_connection(path)
    send(writer, Hello(seat))
    send(writer, Report(1, {A: Claim(enforced, 0)}, {}, b""))
    await until(reader, Answer)
    return reader, writer


async def until(reader: asyncio.StreamReader, kind: type[ToWorker]) -> ToWorker:
    async with asyncio.timeout(PATIENCE_S):
        while not isinstance(message := await to_worker(reader), kind):
            assert message is not None, "the line has ended"
    return message


async def test_what_runs_is_told_and_ends_with_its_worker(tmp_path: Path):
    """The other hears of it at once, not with its next report; and at once that it is gone."""
    hub = Hub(2, lambda _seat, _banner: None, UsageBook(Usage(), 0))
    await hub.serve(path := tmp_path / "hub.sock")
    reader, writer = await joined(path, 1, enforced=WHOLE)
    _, other = await joined(path, 2, enforced=0)
    send(other, Runs({A: Running(2, 30, 0.5)}))
    told = await until(reader, Beside)
    assert told == Beside({A: Running(2, 30, 0.5)})
    other.close()
    assert await until(reader, Beside) == Beside({A: Running()})
    writer.close()
    await hub.close()
