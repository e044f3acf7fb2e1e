"""A real Redis Cluster of three masters under the shared budgets: its slots move, its masters die and stand still; no engine ever gets too much."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from config.shared import RedisServer as RedisSection
from config.shared import SharedRedis
from router.shared.book_in_redis import BookInRedis
from router.shared.redis_line import Unreachable
from router.tenants.keys_in_redis import Change, KeysInRedis
from tests.real.test_keys_in_redis import keys, status, until_state, until_status
from tests.real.test_keys_in_redis import write as write_keys
from tests.real.test_shared_book import NAMES, TERMS, some_report
from tests.real.test_shared_gateways import engines, replica, until_replica
from tests.support.gateway_process import GatewayProcess, serving
from tests.support.patience import PATIENCE_S
from tests.support.ports import free_port
from tests.support.raw_http import ask, post
from tests.support.redis_cluster import RedisCluster
from tests.support.shared_fleet import gateways, load, until_mode, until_shares_sum_to

pytestmark = pytest.mark.real

BOOK = "{penstock:default}:book"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    """Three masters."""
    yield from started(RedisCluster(tmp_path))


@pytest.fixture
def replicated(tmp_path: Path) -> Iterator[RedisCluster]:
    """Three masters with a replica each."""
    yield from started(RedisCluster(tmp_path, replicas=True, node_timeout_ms=3000))


def started(cluster: RedisCluster) -> Iterator[RedisCluster]:
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def sections(cluster: RedisCluster, number: int, **changes: object) -> list[dict[str, object]]:
    return [{"url": cluster.url, "cluster": True, "name": f"g{i}", **changes} for i in range(number)]


async def until_whole(all_: list[GatewayProcess]) -> None:
    for gateway in all_:
        await until_mode(gateway, "redis", gateways=len(all_))
    await until_shares_sum_to(all_, 0.9)


async def until_without_redis(all_: list[GatewayProcess]) -> None:
    """Each may be with it again by now."""
    for gateway in all_:
        await gateway.until_log("without Redis")


def move(cluster: RedisCluster, key: str) -> None:
    """The slot goes to the next master, key by key."""
    slot, source = cluster.slot_of(key), cluster.owner(key)
    target = next(node for node in cluster.masters if node is not source)
    cluster.begin_move(slot, source, target)
    for found in cluster.keys_in(slot, source):
        cluster.move_key(found, source, target)
    cluster.end_move(slot, source, target)


async def test_the_book_is_the_same_in_a_cluster(cluster: RedisCluster):
    """Wherever its slot is: reports, notices and calls work with each prefix, and one in another slot is another book."""
    random_, owners = random.Random(1), set()
    for prefix in ("a", "b", "c", "d", "e", "f"):
        book = BookInRedis(SharedRedis(url=cluster.url, cluster=True, prefix=prefix, lease_s=60, timeout_s=60))
        owners.add(cluster.owner(f"{{{prefix}}}:book").port)
        heard: asyncio.Queue[str] = asyncio.Queue()
        listening = asyncio.get_running_loop().create_task(book.listen(heard.put_nowait, lambda _words: None))
        numbers = dict.fromkeys(NAMES, 0)
        for _ in range(20):
            await book.report(some_report(random_, numbers), b"")
        number = await book.note("r", 0, b"drain", 1000)
        assert await book.note("r", number, b"", None) > number
        async with asyncio.timeout(PATIENCE_S):
            step = 0
            while heard.empty():
                step += 1
                report = some_report(random_, numbers)
                calls = type(report)(
                    name="calls", instance="1", number=step, terms=TERMS, wishes=report.wishes, short=True
                )
                await book.report(calls, b"")
                await asyncio.sleep(0.01)
        assert heard.get_nowait() == "calls"
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await book.aclose()
    assert len(owners) == 3


async def test_two_gateways_over_a_cluster(cluster: RedisCluster, tmp_path: Path):
    """Both have far more work than there is room for: full and never over-full; a drain at one is known to the other."""
    async with engines(2) as fleet, gateways(tmp_path, fleet, sections(cluster, 2)) as all_:
        await until_whole(all_)
        async with load({gateway.url: 24 for gateway in all_}) as clients:
            first, second = all_
            await clients.until_served(40, first.url, second.url)
            assert (await ask(first.url, post("/admin/replicas/e1/drain", {"deadline_s": 600}))).status == 200
            await until_replica(second.url, "lifecycle", "draining")
            assert (await replica(second.url))["lifecycle"] == "draining"
            assert (await ask(second.url, post("/admin/replicas/e1/restore", {}))).status == 200
            await until_replica(first.url, "lifecycle", "ready")
        assert clients.failures == []


async def test_the_slot_moves_under_load(cluster: RedisCluster, tmp_path: Path):
    """To another master and on, key by key; in the midst of it the book cannot be asked, and nobody fails; then it is a new one."""
    async with engines(1) as fleet, gateways(tmp_path, fleet, sections(cluster, 2)) as all_:
        await until_whole(all_)
        async with load({gateway.url: 12 for gateway in all_}) as clients:
            await clients.until_served(5, *(gateway.url for gateway in all_))
            for _ in range(2):
                before = cluster.owner(BOOK)
                await asyncio.to_thread(move, cluster, BOOK)
                assert cluster.owner(BOOK) is not before
                await until_whole(all_)
            slot, source = cluster.slot_of(BOOK), cluster.owner(BOOK)
            target = next(node for node in cluster.masters if node is not source)
            cluster.begin_move(slot, source, target)
            cluster.move_key(BOOK.encode(), source, target)  # the others stay behind: no script can run on either
            for gateway in all_:
                await until_mode(gateway, "static")
            for key in cluster.keys_in(slot, source):
                cluster.move_key(key, source, target)
            cluster.end_move(slot, source, target)
            await until_whole(all_)
        assert clients.failures == []


@pytest.mark.parametrize("dies", [True, False])
async def test_the_book_s_master_is_lost(replicated: RedisCluster, tmp_path: Path, dies: bool):
    """Killed, or silent; its replica takes over. The node that is configured is the one that is lost; one that starts then asks another."""
    cluster = replicated
    lost = cluster.owner(BOOK)
    where = {"url": f"redis://127.0.0.1:{lost.port}"}
    async with engines(1) as fleet, gateways(tmp_path, fleet, sections(cluster, 2, **where)) as all_:
        await until_whole(all_)
        async with load({gateway.url: 12 for gateway in all_}) as clients:
            await clients.until_served(5, *(gateway.url for gateway in all_))
            lost.kill() if dies else lost.freeze()
            await until_without_redis(all_)
            await until_whole(all_)
            assert cluster.owner(BOOK) is not lost
            others = [f"127.0.0.1:{node.port}" for node in cluster.nodes if node is not lost]
            (tmp_path / "late").mkdir()
            late = {**sections(cluster, 3, **where)[2], "cluster_nodes": others}
            async with gateways(tmp_path / "late", fleet, [late]) as more:
                await until_whole([*all_, *more])
        assert clients.failures == []


async def test_keys_of_a_cluster_are_followed(replicated: RedisCluster, tmp_path: Path):
    """Made and revoked at one node, heard of at the gateway; their master dies, and no key is called wrong."""
    config = write_keys(tmp_path, replicated.url)
    text = config.read_text().replace('{"url"', '{"cluster": true, "url"')
    config.write_text(text)
    key = keys("create", "--config", str(config), "--tenant", "acme")
    async with serving(config) as gateway:
        await until_state(gateway, "ok")
        assert await status(gateway, key) == 200
        other = keys("create", "--config", str(config), "--tenant", "umbrella")
        await until_status(gateway, other, 200)
        replicated.owner("{penstock:default}:keys").kill()
        await until_state(gateway, "unreachable")
        assert await status(gateway, key) == 200
        await until_state(gateway, "ok")
        ids = {line.split()[1]: line.split()[0] for line in keys("list", "--config", str(config)).splitlines()[1:]}
        keys("revoke", ids["umbrella"], "--config", str(config))
        await until_status(gateway, other, 401)
        assert await status(gateway, key) == 200


async def test_a_message_is_heard_wherever_one_listens(cluster: RedisCluster):
    """Keys are written at their slot's master; who listens at any other node hears of it."""
    found = 0
    for node in cluster.masters:
        section = RedisSection(url=f"redis://127.0.0.1:{node.port}", cluster=True, prefix=f"m{node.port}")
        book, heard = KeysInRedis(section), asyncio.Event()
        listening = asyncio.get_running_loop().create_task(book.listen(heard.set))
        async with asyncio.timeout(PATIENCE_S):
            before = b""
            while not heard.is_set():
                after = before + b"x"
                assert await book.put([Change("k", before, after)])
                before = after
                await asyncio.sleep(0.02)
        found += 1
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        await book.aclose()
    assert found == 3


def test_there_is_no_cluster_at_a_free_port():
    """What cannot be met is said in a word, as of a single Redis."""
    book = KeysInRedis(RedisSection(url=f"redis://127.0.0.1:{free_port()}", cluster=True))
    with pytest.raises(Unreachable):
        asyncio.run(book.changes(""))
