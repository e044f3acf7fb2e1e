"""Bar 1: 200 streams at once, one of four replicas killed every five seconds for a minute, and no client sees any of it."""

import asyncio
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.fleet import fleet, must_continue
from tests.support import faults
from tests.support.engine_process import EngineProcess, replica
from tests.support.gateway_process import GatewayProcess, serving
from tests.support.raw_http import ask, get
from tests.support.scrape import from_page
from tests.support.stream_client import Told, chat_body, told

pytestmark = [pytest.mark.bars, pytest.mark.timeout(900)]

REPLICAS, STREAMS = 4, 200
EVERY_S, FOR_S = 5.0, 60.0
# Some 60 ms a token, whose pace two cores bear 200 times with engines, gateway and clients; a prompt is read in some 40 ms.
GPU = "L4-24G"
TOKENS = 200  # a stream lives for two or three kills
PROMPT_WORDS = 60
GAP_ROOM_S = 0.2  # the bar: no seam longer than a re-prefill and this
# Slow engines are no overload: objectives that they can keep, or the gateway would hold requests back for the others' sake.
SECTIONS = {"probe": {"interval_s": 0.5}, "scheduling": {"objectives": {"tpot_s": 0.5, "ttft_s": 3}}}
# A kill is felt at once, or when what the sockets still held is used up.
FELT_S = 2.0

Kill = tuple[float, str]  # when on the loop's clock, which replica


def prompt(name: str) -> str:
    return f"Bar one, {name}: " + "penstock " * PROMPT_WORDS


async def clients(gateway: GatewayProcess, over: asyncio.Event) -> list[Told]:
    """So many streams at any time until it is over, and to their ends then."""
    answers: list[Told] = []

    async def one(name: int) -> None:
        number = 0
        while not over.is_set():
            answers.append(await told(gateway.url, chat_body(prompt(f"client {name}, request {number}"), TOKENS)))
            number += 1

    async with asyncio.TaskGroup() as group:
        for name in range(STREAMS):
            group.create_task(one(name))
    return answers


async def killings(engines: Mapping[str, EngineProcess], over: asyncio.Event) -> list[Kill]:
    """One after the other is killed and started again at once."""
    loop = asyncio.get_running_loop()
    end_s, kills = loop.time() + FOR_S, []
    for name, victim in cycle(engines.items()):
        await asyncio.sleep(EVERY_S)
        if loop.time() > end_s:
            break
        victim.kill()
        kills.append((loop.time(), name))
        victim.start()
    over.set()
    return kills


async def test_bar_1_no_stream_is_lost(tmp_path: Path, capsys: Any) -> None:
    """0 errors, 0 lost or duplicated tokens; the seams' gaps are printed beside what reading the prompt again costs."""
    with ExitStack() as stack:
        engines = {f"r{n}": stack.enter_context(EngineProcess(seed=n + 1, speed=1.0, gpu=GPU)) for n in range(REPLICAS)}
        for engine in engines.values():
            await engine.ready()
        config = tmp_path / "penstock.yaml"
        replicas = [replica(name, engine.url, gpu={"type": GPU}) for name, engine in engines.items()]
        config.write_text(json.dumps({"replicas": replicas, **SECTIONS}))
        async with serving(config) as gateway:
            alone = [await told(gateway.url, chat_body(prompt(f"alone {n}"), 2)) for n in range(2 * REPLICAS)]
            over = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                work = group.create_task(clients(gateway, over))
                killing = group.create_task(killings(engines, over))
            page = (await ask(gateway.url, get("/metrics"))).body.decode()
            assert "Traceback" not in gateway.log, gateway.log[-3000:]
    answers = work.result()
    with capsys.disabled():
        print(table(answers, alone, killing.result(), page))
    for answer in answers:
        must_continue(answer)


def seams(answers: Sequence[Told], kills: Sequence[Kill]) -> list[float]:
    """The longest gap after each death, of the streams that had begun on the engine that died. Seconds."""
    return [
        answer.longest_gap_s(killed_s - FELT_S, killed_s + FELT_S)
        for killed_s, name in kills
        for answer in answers
        if answer.headers.get("x-penstock-replica") == name and answer.arrivals_s
        if answer.arrivals_s[0] < killed_s < answer.arrivals_s[-1]
    ]


def table(answers: Sequence[Told], alone: Sequence[Told], kills: Sequence[Kill], page: str) -> str:
    """The bar's figures."""
    kinds = Counter(fault.split(":")[0] for answer in answers for fault in answer.faults)
    resumed, errored = (
        int(from_page(page, "penstock_stream_interruptions_total", action=action)) for action in ("resumed", "errored")
    )
    gaps = seams(answers, kills)
    whole = [answer.longest_gap_s(0, math.inf) for answer in answers]
    rows = {
        "streams": len(answers),
        "engines killed": len(kills),
        "interruptions resumed / errored": f"{resumed} / {errored}",
        "streams with a fault": sum(bool(answer.faults) for answer in answers),
        **{f"  {name}": count for name, count in sorted(kinds.items())},
        "streams whose first engine died": len(gaps),
        "their longest gap then": spread(gaps),
        "all streams' longest gap": spread(whole),
        "reading such a prompt, idle": spread([answer.ttft_s for answer in alone]),
        "reading such a prompt, under load": spread([answer.ttft_s for answer in answers if answer.arrivals_s]),
        "the bar": f"gap p99 <= re-prefill + {GAP_ROOM_S:g} s",
    }
    width = max(map(len, rows))
    return "\n".join(["", *(f"{name:<{width}}  {value}" for name, value in rows.items())])


def spread(values: Sequence[float]) -> str:
    ordered = sorted(values)
    at = [ordered[min(len(ordered) - 1, math.ceil(q * len(ordered)) - 1)] if ordered else 0.0 for q in (0.5, 0.99)]
    return f"p50 {at[0]:.3f} s, p99 {at[1]:.3f} s"


@pytest.mark.parametrize("kind", ["FIN", "RST", "engine error"])
async def test_cut_at_every_token_of_a_long_answer(engines: list[EngineProcess], kind: str) -> None:
    """As the short form's cuts, for every k up to 200."""
    async with fleet(engines) as found:
        for first in range(0, 201, 20):
            every_k = range(first, min(first + 20, 201))
            asked = [found.ask(chat_body(f"Long {k} {kind}", 200), faults.at_token(k, BREAKS[kind])) for k in every_k]
            for k, answer in zip(every_k, await asyncio.gather(*asked), strict=True):
                must_continue(answer, k)


BREAKS = {"FIN": faults.cut, "RST": faults.reset, "engine error": faults.engine_error}
