"""SIGHUP: a valid configuration is taken over while streams run; a bad one changes nothing and says so."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Any

from backends.simulated.bodies import chat_text
from backends.simulated.tokens import expected_text
from tests.support.asgi import chat
from tests.support.gateway_process import GatewayProcess, serving
from tests.support.patience import PATIENCE_S
from tests.support.raw_http import ask, connected, get, post
from tests.support.scrape import from_page

CHAT = "/v1/chat/completions"


def write(folder: Path, *names: str, models: tuple[str, ...] = ("m",), **sections: Any) -> Path:
    path = folder / "penstock.yaml"
    replicas = [
        {"name": name, "backend": "simulated", "models": list(models), "gpu": {"type": "A100-80G"}} for name in names
    ]
    path.write_text(json.dumps({"replicas": replicas, "probe": {"interval_s": 0.05}, **sections}))
    return path


async def replicas(gateway: GatewayProcess) -> dict[str, str]:
    found: dict[str, str] = (await ask(gateway.url, get("/readyz"))).json()["replicas"]
    return found


async def reloads(gateway: GatewayProcess, result: str) -> float:
    return from_page(
        (await ask(gateway.url, get("/metrics"))).body.decode(), "penstock_config_reloads_total", result=result
    )


async def until_ready(gateway: GatewayProcess, *names: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await replicas(gateway) != dict.fromkeys(names, "ready"):
            await asyncio.sleep(0.01)


async def test_reload_adds_and_removes_replicas(tmp_path: Path) -> None:
    """A replica that is removed finishes its streams and gets no more; one that is added takes the work."""
    async with serving(write(tmp_path, "old")) as gateway, connected(gateway.url) as client:
        await client.send(post(CHAT, chat("Hello", stream=True, max_tokens=150, ignore_eos=True)))
        _, headers = await client.head()
        assert headers["x-penstock-replica"] == "old"
        first = await client.chunk()
        write(tmp_path, "new")
        gateway.signal(signal.SIGHUP)
        await gateway.until_log("configuration reloaded: 1 replicas")
        await until_ready(gateway, "new")
        assert await reloads(gateway, "applied") == 1
        answer = await ask(gateway.url, post(CHAT, chat("Hi", max_tokens=3)))
        assert answer.headers["x-penstock-replica"] == "new"
        body = first + await client.rest_of_chunks()
        assert body.endswith(b"data: [DONE]\n\n")
        events = [json.loads(line[6:]) for line in body.decode().split("\n") if line.startswith("data: {")]
        text = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
        assert text == expected_text(chat_text([{"role": "user", "content": "Hello"}]), 150)


async def test_reload_takes_other_models(tmp_path: Path) -> None:
    """A replica whose models changed serves the new ones and no longer the old."""
    async with serving(write(tmp_path, "sim")) as gateway:
        write(tmp_path, "sim", models=("n",))
        gateway.signal(signal.SIGHUP)
        await gateway.until_log("configuration reloaded: 1 replicas")
        async with asyncio.timeout(PATIENCE_S):
            while (await ask(gateway.url, post(CHAT, chat("Hi", model="n", max_tokens=3)))).status != 200:
                await asyncio.sleep(0.01)
        assert [row["id"] for row in (await ask(gateway.url, get("/v1/models"))).json()["data"]] == ["n"]
        assert (await ask(gateway.url, post(CHAT, chat("Hi", model="m", max_tokens=3)))).status in {404, 503}


async def test_bad_reload_changes_nothing(tmp_path: Path) -> None:
    """Whatever is wrong with the file is logged and counted; the gateway goes on with what it has."""
    async with serving(write(tmp_path, "a", "b")) as gateway:
        path = tmp_path / "penstock.yaml"
        good = path.read_text()
        bad = ("replicas: [", "replicas: []", '{"replicas": [{"name": "c"}]}', '{"surver": {}}', "\x00")
        for count, text in enumerate(bad, 1):
            path.write_text(text)
            gateway.signal(signal.SIGHUP)
            await gateway.until_log("reload refused, nothing changed", times=count)
        path.unlink()
        gateway.signal(signal.SIGHUP)
        await gateway.until_log("reload refused, nothing changed", times=len(bad) + 1)
        assert await replicas(gateway) == {"a": "ready", "b": "ready"}
        assert await reloads(gateway, "rejected") == len(bad) + 1
        assert await reloads(gateway, "applied") == 0
        assert (await ask(gateway.url, post(CHAT, chat("Hi", max_tokens=3)))).status == 200
        path.write_text(good)
        gateway.signal(signal.SIGHUP)
        await gateway.until_log("configuration reloaded: 2 replicas")
    assert "Traceback" not in gateway.log


async def test_reload_says_what_needs_a_restart(tmp_path: Path) -> None:
    """What cannot change under way is named, not ignored in silence."""
    async with serving(write(tmp_path, "a")) as gateway:
        write(tmp_path, "a", queue={"max_requests": 7})
        gateway.signal(signal.SIGHUP)
        await gateway.until_log("a change under `queue` takes effect at the next start")
        await gateway.until_log("configuration reloaded")
    assert "Traceback" not in gateway.log
