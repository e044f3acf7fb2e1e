"""The gateway's own misfortunes, as a process before real engines: killed, out of descriptors, reloaded under load."""

import asyncio
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.chaos.fleet import PATIENT, merged, must_be_told, must_continue
from tests.support.engine_process import EngineProcess, replica
from tests.support.gateway_process import GatewayProcess, serving
from tests.support.patience import PATIENCE_S
from tests.support.raw_http import RawClient, ask, get, post
from tests.support.scrape import from_page
from tests.support.stream_client import chat_body, told


def write(folder: Path, engines: Sequence[EngineProcess], **sections: Any) -> Path:
    replicas = [replica(f"r{number}", engine.url) for number, engine in enumerate(engines)]
    path = folder / "penstock.yaml"
    path.write_text(json.dumps({"replicas": replicas, **merged(PATIENT, sections)}))
    return path


async def until_ready(gateway: GatewayProcess, *names: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await ask(gateway.url, get("/readyz"))).json()["replicas"] != dict.fromkeys(names, "ready"):
            await asyncio.sleep(0.01)


async def test_gateway_kill_9(engines: list[EngineProcess], tmp_path: Path, capsys: Any) -> None:
    """A gateway that dies leaves no engine at work: the closed sockets end its requests; the next one serves at once."""
    loop = asyncio.get_running_loop()
    for engine in engines:
        await engine.ready()
    config = write(tmp_path, engines)
    async with serving(config) as gateway:
        await until_ready(gateway, "r0", "r1", "r2")
        clients = [await RawClient.connect(gateway.url) for _ in range(30)]
        for number, client in enumerate(clients):
            await client.send(post("/v1/chat/completions", chat_body(f"Orphan {number}", 8000)))
        for client in clients:
            assert (await client.head())[0] == 200
        aborted = [await engine.aborted() for engine in engines]
        gateway.signal(signal.SIGKILL)
        assert await gateway.exit_code() == -signal.SIGKILL
        for client in clients:
            await client.close()
    for engine, before in zip(engines, aborted, strict=True):
        await engine.until_idle()
        assert await engine.aborted() > before, "its requests ran to their ends"
    killed_s = loop.time()
    async with serving(config) as gateway:
        await until_ready(gateway, "r0", "r1", "r2")
        with capsys.disabled():
            print(f"\ngateway: from start to ready in {loop.time() - killed_s:.2f} s")
        for answer in await asyncio.gather(*(told(gateway.url, chat_body(f"Again {n}", 30)) for n in range(12))):
            must_continue(answer)


async def test_descriptors_run_out(engines: list[EngineProcess], tmp_path: Path) -> None:
    """With no descriptor left connections are not taken, or requests refused; nothing is short, nothing dies, and it passes."""
    for engine in engines:
        await engine.ready()
    async with serving(write(tmp_path, engines)) as gateway:
        await until_ready(gateway, "r0", "r1", "r2")
        gateway.limit_descriptors(spare=12)
        answers = await asyncio.gather(*(told(gateway.url, chat_body(f"Many {n}", 300)) for n in range(60)))
        for answer in answers:
            if answer.status:  # 0: the connection was closed without a word
                must_continue(answer) if answer.status == 200 and not answer.faults else must_be_told(answer)
        assert any(not answer.faults for answer in answers)
        assert any(answer.faults for answer in answers), "the limit did not bind"
        await until_ready(gateway, "r0", "r1", "r2")
        for number in range(5):
            must_continue(await told(gateway.url, chat_body(f"After {number}", 30)))
        assert "Traceback" not in gateway.log, gateway.log
    for engine in engines:
        await engine.until_idle()


async def test_reload_under_load(engines: list[EngineProcess], tmp_path: Path) -> None:
    """Replicas leave and come back by configuration again and again: no stream notices."""
    for engine in engines:
        await engine.ready()
    async with serving(write(tmp_path, engines)) as gateway:
        await until_ready(gateway, "r0", "r1", "r2")
        done = asyncio.Event()

        async def client(name: int) -> int:
            count = 0
            while not done.is_set():
                must_continue(await told(gateway.url, chat_body(f"Reload {name} {count}", 150)), (name, count))
                count += 1
            return count

        async with asyncio.TaskGroup() as group:
            clients = [group.create_task(client(n)) for n in range(8)]
            for turn in range(6):
                few = engines[: 1 + turn % 2]
                for fleet in (few, engines):
                    write(tmp_path, fleet)
                    gateway.signal(signal.SIGHUP)
                    await until_ready(gateway, *(f"r{n}" for n in range(len(fleet))))
            done.set()
        assert all(client.result() > 0 for client in clients)
        page = (await ask(gateway.url, get("/metrics"))).body.decode()
        assert from_page(page, "penstock_config_reloads_total", result="applied") == 12
        assert "Traceback" not in gateway.log, gateway.log
