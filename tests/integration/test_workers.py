"""`penstock serve --workers 2`: one gateway in two processes - one port, one page of metrics, one budget of each replica."""

import asyncio
import json
import os
import re
import signal
import socket
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest

from backends.simulated.bodies import chat_text
from backends.simulated.tokens import expected_text
from tests.support.asgi import chat
from tests.support.gateway_process import GatewayProcess, serving, started
from tests.support.raw_http import RawClient, ask, connected, get, post
from tests.support.scrape import from_page
from tests.support.two_workers import PATIENCE_S, engine, one_each, seat, two_workers, write

CHAT = "/v1/chat/completions"
SEQUENCES = 4  # of the engine
TOKENS = 100


async def page(url: str) -> str:
    return (await ask(url, get("/metrics"))).body.decode()


async def until_metric(url: str, wanted: float, name: str, **labels: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while from_page(await page(url), name, **labels) != wanted:
            await asyncio.sleep(0.05)


def counters(text: str) -> dict[str, float]:
    """Whatever must never go back: counters, and histograms' counts and buckets."""
    samples = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in samples if re.search(r"_(total|count|sum|bucket)(\{|$)", name)}


def story(tokens: int, word: str = "Hello") -> bytes:
    return post(CHAT, chat(word, stream=True, max_tokens=tokens, ignore_eos=True))


def told(body: bytes) -> str:
    events = [json.loads(line[6:]) for line in body.decode().split("\n") if line.startswith("data: {")]
    return "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])


def pid(gateway: GatewayProcess, number: int) -> int:
    """Of the worker that sits there now."""
    return int(re.findall(rf"worker {number} serves \(pid (\d+)\)", gateway.log)[-1])


def process_figures(pid: int) -> tuple[float, float, int]:
    """CPU seconds, resident bytes and descriptors of a process, as the system has them."""
    stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    cpu_s = (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")
    resident = int(stat[21]) * os.sysconf("SC_PAGE_SIZE")
    return cpu_s, resident, len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def test_metrics_are_exact_across_workers(tmp_path: Path) -> None:
    """Both workers serve, and whichever is scraped says what all were asked, to the last request."""
    async with two_workers(tmp_path, speed=50) as gateway, AsyncExitStack() as stack:
        clients = await one_each(stack, gateway.url)
        for client in clients.values():
            for _ in range(10):
                assert (await client.ask(post(CHAT, chat("Hi", max_tokens=3, ignore_eos=True)))).status == 200
        await until_metric(gateway.url, 20, "penstock_requests_total", status="200")
        pages = [(await client.ask(get("/metrics"))).body.decode() for client in clients.values()]
        for text in pages:
            assert from_page(text, "penstock_requests_total", status="200") == 20
            assert from_page(text, "penstock_request_duration_seconds_count") == 20
            assert from_page(text, "penstock_tokens_total", kind="output") == 60
            assert from_page(text, "penstock_build_info") == 1
            assert from_page(text, "penstock_workers") == 2
            assert from_page(text, "penstock_replica_share_ratio", replica="sim") <= 1
            assert from_page(text, "penstock_desired_replicas", model="m") == 0
            assert from_page(text, "penstock_overhead_seconds_count", stage="ingress") == 20
            figures = [process_figures(pid(gateway, number)) for number in clients]
            told = [
                from_page(text, f"process_{name}")
                for name in ("cpu_seconds_total", "resident_memory_bytes", "open_fds")
            ]
            sums = [sum(column) for column in zip(*figures, strict=True)]
            assert sums[0] * 0.8 < told[0] <= sums[0] + 1e-6, "both have their share of it"
            assert told[1] == pytest.approx(sums[1], rel=0.1)
            assert told[2] == pytest.approx(sums[2], abs=6)
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_code() == 0


async def test_workers_share_an_engine_and_never_overfill_it(tmp_path: Path) -> None:
    """More requests at each worker than the engine has sequences: none ever waits in the engine, and all are served."""
    async with (
        engine(max_num_seqs=SEQUENCES, speed=4) as url,
        serving(write(tmp_path, url, max_num_seqs=SEQUENCES), "--workers", "2") as gateway,
        AsyncExitStack() as stack,
    ):
        seats = [await stack.enter_async_context(connected(gateway.url)) for _ in range(24)]
        assert {await seat(client) for client in seats} == {1, 2}
        # Long enough for a look to meet as many as there may be.
        asked = asyncio.gather(
            *(client.ask(story(TOKENS, word=f"word {number}")) for number, client in enumerate(seats))
        )
        most = 0.0
        while not asked.done():
            figures = (await ask(url, get("/metrics"))).body.decode()
            running, waiting = (from_page(figures, f"vllm:num_requests_{what}") for what in ("running", "waiting"))
            assert running + waiting <= SEQUENCES
            most = max(most, running)
        assert most == SEQUENCES
        for number, answer in enumerate(await asked):
            assert answer.events()[-1] == "[DONE]"
            assert told(answer.body) == expected_text(
                chat_text([{"role": "user", "content": f"word {number}"}]), TOKENS
            )
    assert "Traceback" not in gateway.log


async def test_request_wider_than_any_share_is_served(tmp_path: Path) -> None:
    """It needs nine tenths of the replica's KV cache, of which each worker has about half: it waits for more, and gets it."""
    async with two_workers(tmp_path, kv_blocks=200, max_model_len=4096, speed=20) as gateway, AsyncExitStack() as stack:
        for client in (await one_each(stack, gateway.url)).values():
            answer = await client.ask(post(CHAT, chat("word " * 2000, max_tokens=100, ignore_eos=True)))
            assert answer.status == 200, answer.body


async def test_killed_worker_loses_only_its_own_streams(tmp_path: Path) -> None:
    """The others' go on whole, it is back at once, its share returns, and no counter goes backwards."""
    async with two_workers(tmp_path) as gateway, AsyncExitStack() as stack:
        clients = await one_each(stack, gateway.url)
        for client in clients.values():
            assert (await client.ask(post(CHAT, chat("Hi", max_tokens=3, ignore_eos=True)))).status == 200
        await until_metric(gateway.url, 2, "penstock_requests_total", status="200")
        begun = {}
        for number, client in clients.items():
            await client.send(story(300 if number == 2 else 3000))  # the one that is to be lost lasts until it is
            await client.head()
            begun[number] = await client.chunk()
        before = counters(await page(gateway.url))
        os.kill(pid(gateway, 1), signal.SIGKILL)
        lost = begun[1] + await clients[1].until_closed()
        assert b"[DONE]" not in lost
        kept = begun[2] + await clients[2].rest_of_chunks()
        assert kept.endswith(b"data: [DONE]\n\n")
        assert told(kept) == expected_text(chat_text([{"role": "user", "content": "Hello"}]), 300)
        await gateway.until_log(r"worker 1 serves", times=2)
        await until_metric(gateway.url, 2, "penstock_workers")
        after = counters(await page(gateway.url))
        assert {name: value for name, value in before.items() if after.get(name, 0.0) < value} == {}
        assert after["penstock_worker_restarts_total"] == 1
        assert from_page(await page(gateway.url), "penstock_requests_total", status="200") == 3
        await until_metric(gateway.url, 1, "penstock_replica_share_ratio", replica="sim")
        fresh = await one_each(stack, gateway.url)
        answer = await fresh[1].ask(post(CHAT, chat("Hi", max_tokens=3, ignore_eos=True)))
        assert answer.status == 200


async def test_sigterm_drains_all_workers(tmp_path: Path) -> None:
    """Streams of both end whole, the exit code is 0, and nothing is started again."""
    async with two_workers(tmp_path) as gateway, AsyncExitStack() as stack:
        clients = await one_each(stack, gateway.url)
        begun = {}
        for number, client in clients.items():
            await client.send(story(400))
            await client.head()
            begun[number] = await client.chunk()
        gateway.signal(signal.SIGTERM)
        await gateway.until_log("draining: 1 requests in flight", times=2)
        for number, client in clients.items():
            body = begun[number] + await client.rest_of_chunks()
            assert body.endswith(b"data: [DONE]\n\n")
            assert told(body) == expected_text(chat_text([{"role": "user", "content": "Hello"}]), 400)
        assert await gateway.exit_code() == 0
    assert "started again" not in gateway.log


async def test_second_signal_does_not_wait_for_any(tmp_path: Path) -> None:
    """Whoever asks twice means it, of all workers."""
    async with two_workers(tmp_path) as gateway, AsyncExitStack() as stack:
        clients = await one_each(stack, gateway.url)
        for client in clients.values():
            await client.send(story(20_000))
            await client.head()
            await client.chunk()
        gateway.signal(signal.SIGINT)
        await gateway.until_log("draining: 1 requests in flight", times=2)
        gateway.signal(signal.SIGINT)
        for client in clients.values():
            assert b'"code":"draining"' in await client.rest_of_chunks()
        assert await gateway.exit_code() == 0


async def test_sighup_reloads_all_and_who_starts_later(tmp_path: Path) -> None:
    """Both workers take the new replicas, and so does one that replaces a dead one."""
    async with (
        engine(speed=50) as url,
        serving(write(tmp_path, url), "--workers", "2") as gateway,
        AsyncExitStack() as stack,
    ):
        write(tmp_path, url, name="other")
        gateway.signal(signal.SIGHUP)
        await gateway.until_log("configuration reloaded: 1 replicas", times=2)
        os.kill(pid(gateway, 2), signal.SIGKILL)
        await gateway.until_log("worker 2 serves", times=2)
        for client in (await one_each(stack, gateway.url)).values():
            assert (await client.ask(get("/readyz"))).json()["replicas"].keys() == {"other"}


async def test_workers_without_their_supervisor_end(tmp_path: Path) -> None:
    """Nobody could stop them: what runs is finished, then they are gone, and the port is free."""
    async with two_workers(tmp_path) as gateway, AsyncExitStack() as stack:
        client = (await one_each(stack, gateway.url))[1]
        await client.send(story(100))
        await client.head()
        first = await client.chunk()
        gateway.kill()
        assert (first + await client.rest_of_chunks()).endswith(b"data: [DONE]\n\n")
        async with asyncio.timeout(PATIENCE_S):
            while await accepts(gateway.url):
                await asyncio.sleep(0.05)


async def accepts(url: str) -> bool:
    try:
        async with connected(url):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("shared", [False, True])
async def test_port_in_use_is_said_once(tmp_path: Path, shared: bool) -> None:
    """Also where the other one shares its port: two gateways on one port would take each other's requests."""
    with socket.socket() as taken:
        if shared:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = write(tmp_path, "http://127.0.0.1:9", port=port, workers=2)
        async with started("--config", str(config)) as gateway:
            assert await gateway.exit_code() == 1
            await gateway.until_log("choose another port with --port")
    assert gateway.log.count(f"127.0.0.1:{port} is in use") == 1


async def test_decisions_of_all_workers(tmp_path: Path) -> None:
    """Whoever is asked knows what the others placed: the last ones first, and any by its request."""
    async with two_workers(tmp_path, speed=50) as gateway, AsyncExitStack() as stack:
        clients = await one_each(stack, gateway.url)
        asked = []
        for client in [*clients.values(), *clients.values()]:
            answer = await client.ask(post(CHAT, chat("Hi", max_tokens=3, ignore_eos=True)))
            asked.append(answer.headers["x-request-id"])
        for client in clients.values():
            found = (await client.ask(admin("/decisions"))).json()["data"]
            assert [entry["request_id"] for entry in found] == asked[::-1]
            assert len((await client.ask(admin("/decisions?limit=3"))).json()["data"]) == 3
            for name in asked:
                one = (await client.ask(admin(f"/decisions/{name}"))).json()
                assert (one["request_id"], one["earlier"]) == (name, 0)


def admin(path: str) -> bytes:
    """By a name of this machine, which it asks for."""
    return f"GET /admin{path} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()


def order(name: str, what: str, **fields: object) -> bytes:
    body = json.dumps(fields).encode()
    head = f"POST /admin/replicas/{name}/{what} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def test_a_drain_reaches_all_workers_and_those_to_come(tmp_path: Path) -> None:
    """Whoever is told: both send nothing more, both are counted, a worker that is started later knows it, and so does the end."""
    async with engine(speed=0.5) as url, engine(speed=50) as other, AsyncExitStack() as stack:
        path = write(tmp_path, url)
        told = json.loads(path.read_text())
        told["replicas"].append({**told["replicas"][0], "name": "other", "url": other})
        path.write_text(json.dumps(told))
        gateway = await stack.enter_async_context(serving(path, "--workers", "2"))
        clients, control = await one_each(stack, gateway.url), await one_each(stack, gateway.url)
        begun = {}
        for name in ("other", "sim"):
            drained = (await control[1].ask(order(name, "drain"))).json()
            assert (drained["lifecycle"], drained["reason"]) == ("draining", "drain")
            for number, client in clients.items():
                if number not in begun:
                    await client.send(story(500))
                    await client.head()
                    begun[number] = await client.chunk()
        asked = [(await control[number].ask(admin("/replicas"))).json()["data"] for number in (1, 2)]
        for rows in asked:
            assert {row["lifecycle"] for row in rows} == {"draining"}
            assert [(row["name"], row["requests"], row["released"]) for row in rows] == [
                ("sim", 2, False),
                ("other", 0, True),
            ]
        for number, client in clients.items():
            body = begun[number] + await client.rest_of_chunks()
            assert body.endswith(b"data: [DONE]\n\n")
        await until_released(control[2], "sim")
        assert (await control[2].ask(post(CHAT, chat("Hi")))).status == 503
        os.kill(pid(gateway, 1), signal.SIGKILL)
        await gateway.until_log("worker 1 serves", times=2)
        fresh = await one_each(stack, gateway.url)
        await until_released(fresh[1], "sim")
        assert (await fresh[1].ask(post(CHAT, chat("Hi")))).status == 503
        restored = (await fresh[1].ask(order("other", "restore"))).json()
        assert (restored["reason"], restored["released"]) == (None, False)
        for client in fresh.values():
            await until_lifecycle(client, "other", "ready")
            answer = await client.ask(post(CHAT, chat("Hi", max_tokens=3, ignore_eos=True)))
            assert (answer.status, answer.headers["x-penstock-replica"]) == (200, "other")
        assert (await fresh[2].ask(order("other", "restore"))).status == 409
        assert "Traceback" not in gateway.log


async def test_a_notice_is_counted_once_and_has_one_deadline_everywhere(tmp_path: Path) -> None:
    """Told at one worker and repeated at the other; the sooner deadline of two holds for both."""
    async with two_workers(tmp_path) as gateway, AsyncExitStack() as stack:
        clients = await one_each(stack, gateway.url)
        notice: dict[str, object] = {"provider": "aws", "kind": "reclaim", "id": "i-1"}
        soon, later, latest = (unix(in_s) for in_s in (2000, 3000, 4000))
        first = (await clients[1].ask(order("sim", "notice", **notice, deadline_unix_s=later))).json()
        again = (await clients[2].ask(order("sim", "notice", **notice, deadline_unix_s=latest))).json()
        assert first["deadline_unix_s"] == again["deadline_unix_s"] == pytest.approx(later, abs=20)
        assert (first["lifecycle"], again["lifecycle"]) == ("reclaiming", "reclaiming")
        assert from_page(await page(gateway.url), "penstock_spot_notices_total", replica="sim") == 1
        sooner = (await clients[2].ask(order("sim", "notice", **notice, deadline_unix_s=soon))).json()
        known = (await clients[1].ask(admin("/replicas/sim"))).json()
        assert known["deadline_unix_s"] == sooner["deadline_unix_s"] == pytest.approx(soon, abs=20)
        assert 0 < from_page(await page(gateway.url), "penstock_replica_deadline_seconds", replica="sim") <= 2000


def unix(in_s: float) -> float:
    return datetime.now(UTC).timestamp() + in_s


async def until_released(client: RawClient, name: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not (await client.ask(admin(f"/replicas/{name}"))).json()["released"]:
            await asyncio.sleep(0.05)


async def until_lifecycle(client: RawClient, name: str, wanted: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await client.ask(admin(f"/replicas/{name}"))).json()["lifecycle"] != wanted:
            await asyncio.sleep(0.05)


async def test_sigterm_to_one_worker_replaces_it(tmp_path: Path) -> None:
    """It drains, whatever number of times it is told, and another takes its seat."""
    async with two_workers(tmp_path) as gateway, AsyncExitStack() as stack:
        client = (await one_each(stack, gateway.url))[2]
        await client.send(story(100))
        await client.head()
        first = await client.chunk()
        for _ in range(2):
            os.kill(pid(gateway, 2), signal.SIGTERM)
        assert (first + await client.rest_of_chunks()).endswith(b"data: [DONE]\n\n")
        await gateway.until_log("worker 2 serves", times=2)
        await until_metric(gateway.url, 1, "penstock_requests_total", status="200")


async def test_nobody_can_start(tmp_path: Path) -> None:
    """Where every worker ends before it serves, the supervisor does, too, and says so."""
    config = write(tmp_path, "http://127.0.0.1:9")
    async with started("--config", str(config), "--port", "0", "--workers", "2") as gateway:
        found: set[int] = set()
        async with asyncio.timeout(PATIENCE_S):
            while len(found) < 2:
                found = children(gateway.pid)
                await asyncio.sleep(0.005)
        for child in found:
            os.kill(child, signal.SIGKILL)
        assert await gateway.exit_code() == 1
        await gateway.until_log("no worker could start")


def children(parent: int) -> set[int]:
    """The workers a supervisor has started so far."""
    found = set()
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
            found.add(int(child))
    return found
