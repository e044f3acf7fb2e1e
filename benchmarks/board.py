"""What the board costs the gateway: `python -m benchmarks.board` (some two minutes).

A gateway process of its own over simulated replicas, `--streams` streams kept up through it, and viewers of `GET /admin/live`, each
reading every event. Its CPU seconds are read from the system over `--seconds`, first without viewers, then with them, then without
again: the difference is what watching costs, in percent of one core. Streams cost more than the board: with `--streams 0` the
difference is clean, with some it shows that cards which change are paid for, too.
The first figure of each line is the gateway alone, its recorder of seconds included, which runs whether somebody watches or not.
What it cannot show: browsers' own cost, and a network's.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

_ROOT: Final = Path(__file__).resolve().parents[1]
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_SERVE: Final = "from router.cli import main; main()"
_SETTLE_S: Final = 3.0


def config(replicas: int) -> dict[str, object]:
    """So many simulated replicas; looked at every five seconds, so that looks drown nothing."""
    fleet = [
        {
            "name": f"r{number:04}",
            "backend": "simulated",
            "models": ["m"],
            "gpu": {"type": ("H100-80G", "A100-80G")[number % 2]},
            "cost": {"tier": ("reserved", "spot")[number % 2], "usd_per_hour": 1 + number % 3},
        }
        for number in range(replicas)
    ]
    return {"replicas": fleet, "log_level": "error", **({"probe": {"interval_s": 5}} if replicas > 100 else {})}


@asynccontextmanager
async def gateway(folder: Path, replicas: int) -> AsyncIterator[tuple[int, str]]:
    """(pid, URL)"""
    file = folder / "penstock.json"
    file.write_text(json.dumps(config(replicas)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _SERVE, "serve", "--config", str(file), "--port", "0",
        stdout=asyncio.subprocess.PIPE, cwd=_ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"},  # noqa: TID251 - a child's
    )  # fmt: skip
    assert process.stdout is not None
    try:
        while "listens on" not in (line := (await process.stdout.readline()).decode()):
            assert line, "the gateway did not start"
        async with asyncio.TaskGroup() as tasks:
            drained = tasks.create_task(_drain(process.stdout))
            yield process.pid, line.split("listens on ")[1].strip()
            drained.cancel()
    finally:
        process.kill()
        await process.wait()


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.readline():
        pass


def cpu_s(pid: int) -> float:
    """User and system seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


class Count:
    """What came over the wire."""

    def __init__(self) -> None:
        self.events = self.bytes = 0


async def view(url: str, count: Count) -> None:
    """Read all events, parse none: a viewer's own cost is not the gateway's."""
    where = urlsplit(url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=2**24)
    try:
        writer.write(b"GET /admin/live HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        while data := await reader.read(2**20):
            count.bytes += len(data)
            count.events += data.count(b"event: live\n")
    finally:
        writer.close()


async def stream(url: str) -> None:
    """One stream after the other."""
    where = urlsplit(url)
    body = {
        "model": "m",
        "stream": True,
        "max_tokens": 500,
        "ignore_eos": True,
        "messages": [{"role": "user", "content": "Hi"}],
    }
    raw = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(raw)}\r\n\r\n".encode()
    while True:
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        try:
            writer.write(head + raw)
            while await reader.read(2**16):
                pass
        finally:
            writer.close()


async def measure(pid: int, seconds: float) -> float:
    """Percent of one core."""
    loop = asyncio.get_running_loop()
    before, began_s = cpu_s(pid), loop.time()
    await asyncio.sleep(seconds)
    return 100 * (cpu_s(pid) - before) / (loop.time() - began_s)


async def run(replicas: int, streams: int, viewers: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with gateway(Path(folder), replicas) as (pid, url), asyncio.TaskGroup() as tasks:
            asking = [tasks.create_task(stream(url)) for _ in range(streams)]
            await asyncio.sleep(_SETTLE_S)
            alone = [await measure(pid, seconds)]
            count = Count()
            watching = [tasks.create_task(view(url, count)) for _ in range(viewers)]
            await asyncio.sleep(_SETTLE_S)
            before = count.events, count.bytes
            watched = await measure(pid, seconds)
            events, size = count.events - before[0], count.bytes - before[1]
            for task in watching:
                task.cancel()
            await asyncio.sleep(_SETTLE_S)
            alone.append(await measure(pid, seconds))
            for task in asking:
                task.cancel()
    mean = sum(alone) / len(alone)
    print(
        f"board/replicas={replicas}/streams={streams}/viewers={viewers}: alone {alone[0]:.2f} % and {alone[1]:.2f} %, watched "
        f"{watched:.2f} %: +{watched - mean:.2f} % of a core; {events / seconds:.1f} events/s of {size / max(1, events) / 1000:.1f} kB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, nargs="*", default=[3, 1000])
    parser.add_argument("--streams", type=int, nargs="*", default=[0, 20])
    parser.add_argument("--viewers", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=15.0)
    args = parser.parse_args()
    for replicas in args.replicas:
        for streams in args.streams:
            with suppress(KeyboardInterrupt):
                asyncio.run(run(replicas, streams, args.viewers, args.seconds))


if __name__ == "__main__":
    main()
