"""What a gateway process has learned outlives it in a real Redis: the next one's first prediction is made from it."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.asgi import chat
from tests.support.gateway_process import GatewayProcess, serving
from tests.support.raw_http import ask, get, post
from tests.support.redis_server import RedisProcess
from tests.support.shared_fleet import CHAT, configuration, until_mode, watched_engine

pytestmark = pytest.mark.real

BOUND = 4000  # that clients set; answers end by themselves long before
TAUGHT = 36


async def answered(gateway: GatewayProcess, number: int) -> None:
    body = chat(f"{number}: what is the matter?", stream=True, max_tokens=BOUND)
    answer = await ask(gateway.url, post(CHAT, body))
    assert answer.status == 200


async def forecast(gateway: GatewayProcess) -> dict[str, Any]:
    """What was predicted of the last request."""
    (entry,) = (await ask(gateway.url, get("/admin/decisions?limit=1"))).json()["data"]
    predicted: dict[str, Any] = entry["forecast"]
    return predicted


async def test_a_restart_keeps_what_was_learned(redis_process: RedisProcess, tmp_path: Path):
    """The first gateway finds answers short and the machine slow; the one that is started after it knows both before its first answer."""
    async with watched_engine(speed=0.5, max_num_seqs=16) as engine:
        path = configuration(tmp_path / "g.yaml", [engine], {"url": redis_process.url, "name": "g"})
        async with serving(path) as first:
            await until_mode(first, "redis")
            await answered(first, 0)
            before = await forecast(first)
            for burst in range(TAUGHT // 12):
                await asyncio.gather(*(answered(first, 12 * burst + n) for n in range(1, 13)))
            first.signal(signal.SIGTERM)
            assert await first.exit_code() == 0
        async with serving(path) as second:
            await second.until_log(r"begins from what 1 gateways have learned: of 1 kinds of answers and 1 replicas")
            await until_mode(second, "redis")
            await answered(second, 1000)
            after = await forecast(second)
    assert before["output_tokens"] >= 512
    assert before["tpot_s"] == before["tpot_prior_s"]
    assert after["output_tokens"] < 400
    assert after["tpot_s"] > 1.2 * after["tpot_prior_s"]


async def test_what_lies_there_spoilt_is_ignored(redis_process: RedisProcess, tmp_path: Path):
    """Somebody has written over it: one line says so, the gateway serves, and puts down its own at its end."""
    async with watched_engine(max_num_seqs=16) as engine:
        path = configuration(tmp_path / "g.yaml", [engine], {"url": redis_process.url, "name": "g"})
        async with serving(path) as first:
            await until_mode(first, "redis")
            await answered(first, 0)
            first.signal(signal.SIGTERM)
            assert await first.exit_code() == 0
        redis_process.say("EVAL", SPOIL, "1", "{penstock:default}:learned")
        async with serving(path) as second:
            await second.until_log("is ignored where it cannot be used: of g: not of this version")
            await until_mode(second, "redis")
            await answered(second, 1)
            second.signal(signal.SIGTERM)
            assert await second.exit_code() == 0
        async with serving(path) as third:
            await third.until_log("begins from what 1 gateways have learned")


SPOIL = """
local entry = cmsgpack.unpack(redis.call('HGET', KEYS[1], 'g'))
redis.call('HSET', KEYS[1], 'g', cmsgpack.pack({entry[1], 'penstock-learned/999' .. entry[2]}))
"""
