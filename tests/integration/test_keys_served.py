"""Keys as an operator uses them: `penstock keys` beside a running `penstock serve`, in one process and in two."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from openai import AsyncOpenAI, AuthenticationError, RateLimitError

from tests.support.asgi import chat
from tests.support.gateway_process import GatewayProcess, serving, started
from tests.support.patience import PATIENCE_S
from tests.support.raw_http import RawClient, ask, connected, get, post
from tests.support.scrape import from_page

CHAT = "/v1/chat/completions"
LIMIT = 20
BODY = chat("Hi", model="m", max_tokens=2)


def keys(*arguments: str) -> str:
    """Standard output of `penstock keys ...`, which must succeed."""
    command = [sys.executable, "-c", "from router.cli import main; main()", "keys", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def write(folder: Path) -> tuple[Path, Path]:
    """(configuration, keys file), the second not there yet."""
    config, file = folder / "penstock.yaml", folder / "keys.jsonl"
    replica = {"name": "sim", "backend": "simulated", "models": ["m"], "simulated": {"speed": 50}}
    tenant = {"name": "acme", "limits": {"requests_per_minute": LIMIT, "tokens_per_minute": 10**6, "concurrency": 64}}
    config.write_text(json.dumps({"auth": {"keys_file": str(file)}, "replicas": [replica], "tenants": [tenant]}))
    return config, file


def asked(key: str) -> bytes:
    return post(CHAT, BODY, f"authorization: Bearer {key}")


async def until_status(gateway: GatewayProcess, key: str, status: int) -> None:
    """Of /v1/models, which no limit counts."""
    async with asyncio.timeout(PATIENCE_S):
        while (await ask(gateway.url, get("/v1/models", f"x-api-key: {key}"))).status != status:
            await asyncio.sleep(0.1)


async def test_from_nothing_to_two_tenants(tmp_path: Path) -> None:
    """Keys that are made, rotated and revoked while the gateway runs count within seconds; SIGHUP is enough, too; none is in its log."""
    config, file = write(tmp_path)
    first = keys("create", "--file", str(file), "--tenant", "acme")
    assert re.fullmatch(r"psk-[A-Za-z0-9_-]{43}", first)
    async with serving(config) as gateway:
        assert (await ask(gateway.url, asked(first))).status == 200
        assert (await ask(gateway.url, post(CHAT, BODY))).status == 401
        async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="psk-wrong", max_retries=0) as client:
            with pytest.raises(AuthenticationError) as wrong:
                await client.models.list()
            assert (wrong.value.code, wrong.value.type) == ("invalid_api_key", "invalid_request_error")
        second = keys("create", "--config", str(config), "--tenant", "umbrella", "--label", "two")
        await until_status(gateway, second, 200)
        listed = keys("list", "--config", str(config))
        assert first not in listed
        ids = {line.split()[1]: line.split()[0] for line in listed.splitlines()[1:]}
        third = keys("rotate", ids["umbrella"], "--file", str(file), "--overlap", "1h")
        await until_status(gateway, third, 200)
        assert (await ask(gateway.url, asked(second))).status == 200
        keys("revoke", ids["acme"], "--file", str(file))
        os.kill(gateway.pid, signal.SIGHUP)
        await until_status(gateway, first, 401)
        whole = file.read_text()
        file.write_text(whole[:-40])
        await until_metric(gateway, "penstock_keys_stale", 1)
        assert (await ask(gateway.url, asked(third))).status == 200
        file.write_text(whole)
        await until_metric(gateway, "penstock_keys_stale", 0)
    assert "the last good ones stay in force" in gateway.log
    assert not any(key in gateway.log for key in (first, second, third))


async def until_metric(gateway: GatewayProcess, name: str, wanted: float) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while from_page((await ask(gateway.url, get("/metrics"))).body.decode(), name) != wanted:
            await asyncio.sleep(0.1)


async def seat(client: RawClient) -> int:
    found: int = (await client.ask(get("/readyz"))).json()["workers"]["answered_by"]
    return found


async def test_limits_are_of_all_workers(tmp_path: Path) -> None:
    """Asked by two workers at once for three times its limit, a tenant gets exactly its limit; whichever worker answers says so."""
    config, file = write(tmp_path)
    key = keys("create", "--file", str(file), "--tenant", "acme")
    async with serving(config, "--workers", "2") as gateway, AsyncExitStack() as stack:
        found: dict[int, RawClient] = {}
        async with asyncio.timeout(PATIENCE_S):
            while len(found) < 2:
                client = await stack.enter_async_context(connected(gateway.url))
                found.setdefault(await seat(client), client)

        async def many(client: RawClient) -> list[int]:
            return [(await client.ask(asked(key))).status for _ in range(LIMIT + LIMIT // 2)]

        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(many(client)) for client in found.values()]
        statuses = [status for task in running for status in task.result()]
        async with AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) as openai:
            with pytest.raises(RateLimitError) as limited:
                await openai.chat.completions.create(**BODY)
            assert (limited.value.code, limited.value.type) == ("rate_limit_exceeded", "requests")
        assert set(statuses) == {200, 429}
        assert statuses.count(200) == LIMIT
        for client in found.values():
            refused = await client.ask(asked(key))
            assert (refused.status, refused.headers["x-ratelimit-remaining-requests"]) == (429, "0")
            assert 1 <= int(refused.headers["retry-after"]) <= 61
    assert "Traceback" not in gateway.log


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_no_gateway_without_its_keys(tmp_path: Path, workers: str) -> None:
    """A keys file that is missing or broken at the start is an error of the configuration: exit code 78, and what to do."""
    config, file = write(tmp_path)
    for text, says in ((None, "No such file"), ("{", ":1: no record of a key"), ("\n", "penstock keys create")):
        if text is not None:
            file.write_text(text)
        async with started("--config", str(config), "--port", "0", "--workers", workers) as gateway:
            assert await gateway.exit_code() == 78
            await gateway.until_log(says)
