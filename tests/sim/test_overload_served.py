"""What clients of a whole gateway see in a flood: statuses, reasons, times - and that returning in time helps."""

import asyncio
import json
from typing import Any

from tests.support.asgi import Call, chat, post
from tests.support.simulated_fleet import CHAT, Fleet, fleet, fleet_config
from tests.support.virtual_time import run_virtual

CAPACITY = {"max_num_seqs": 2, "max_num_batched_tokens": 2048}


def call(running: Fleet, name: str, **fields: Any) -> Call:
    body = chat(f"{name}: hello", stream=True, max_tokens=20, ignore_eos=True, **fields)
    return post(running.running.app, CHAT, body, headers=[("x-request-id", name)])


async def flood(running: Fleet, tasks: asyncio.TaskGroup, seconds: float, rate: int) -> list[Call]:
    calls = []
    for number in range(round(seconds * rate)):
        calls.append(call(running, f"f{number}"))
        tasks.create_task(calls[-1].run())
        await asyncio.sleep(1 / rate)
    return calls


def told_s(refused: Call) -> float:
    return int(refused.header("retry-after-ms") or 0) / 1000


def test_who_is_refused_in_a_flood_and_returns_in_time_is_answered() -> None:
    """503 with the reason and a time of its own; the same body at that time is let in while others are refused."""

    async def scene() -> None:
        config = fleet_config("a", capacity=CAPACITY, queue={"max_wait_s": 3.0})
        async with fleet(config) as running, asyncio.TaskGroup() as tasks:
            calls = await flood(running, tasks, 12.0, 60)
            refused = [one for one in calls if one.complete and one.status == 503]
            assert {one.header("x-penstock-dropped-reason") for one in refused} == {"overload", "deadline"}
            soon = next(one for one in reversed(refused) if 1.5 < told_s(one) < 30)
            crowd = asyncio.get_running_loop().create_task(flood(running, tasks, told_s(soon) + 1, 60))
            await asyncio.sleep(told_s(soon))
            again = post(running.running.app, CHAT, json.loads(soon.body), headers=[("x-request-id", "again")])
            await again.run()
            assert again.status == 200
            others = [one for one in await crowd if one.complete]
            assert sum(one.status == 503 for one in others) > 0.5 * len(others)

    run_virtual(scene())
