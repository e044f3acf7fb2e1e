"""What changes around the gateway while streams run: the wall clock jumps, an engine's name comes to mean another machine."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from config.schema import Config
from tests.chaos.fleet import PATIENT, Fleet, fleet, must_continue
from tests.support.conditions import until, until_at_rest
from tests.support.engine_process import EngineProcess, replica
from tests.support.fault_proxy import FaultProxy, Plan
from tests.support.gateways import listening
from tests.support.patience import PATIENCE_S
from tests.support.stream_client import chat_body

HOST = "engine.penstock.test"


@pytest.mark.parametrize("jump_s", [86_400.0, -86_400.0, 3e9], ids=["a day on", "a day back", "beyond 2038"])
async def test_clock_jump(engines: list[EngineProcess], monkeypatch: pytest.MonkeyPatch, jump_s: float) -> None:
    """Nothing hangs on the wall clock: streams under way, new ones, probes and timeouts go on as before."""
    real = time.time  # noqa: TID251 - it is what jumps
    offset = [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + offset[0])
    async with fleet(engines) as found:

        async def jump(tokens: int) -> None:
            if tokens >= 10:
                offset[0] = jump_s

        answers = await asyncio.gather(*(found.ask(chat_body(f"Jump {n}", 100), at_token=jump) for n in range(12)))
        assert offset == [jump_s]
        for answer in answers:
            must_continue(answer)
        probed = found.proxies["r0"].probes
        await until(lambda: found.proxies["r0"].probes > probed + 3)
        must_continue(await found.ask(chat_body("Later", 20)))
        await found.until_ready()


class Names:
    """What the resolver says of HOST: an address, or that there is none. Everything else is asked of the real one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.port: int | None = None
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._resolve)

    def _resolve(self, host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if host not in {HOST, HOST.encode()}:
            return self._real(host, port, *args, **options)
        if self.port is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", self.port))]


@asynccontextmanager
async def by_name(engines: list[EngineProcess], names: Names) -> AsyncIterator[tuple[Fleet, FaultProxy, FaultProxy]]:
    """A gateway that knows one engine by its name, and the two machines that the name may mean; first it means the first."""
    plan = Plan()
    for engine in engines:
        await engine.ready()
    async with FaultProxy("old", engines[0].url, plan) as old, FaultProxy("new", engines[1].url, plan) as new:
        names.port = old.port
        config = Config.model_validate({"replicas": [replica("named", f"http://{HOST}:80")], **PATIENT})
        async with listening(config) as running:
            found = Fleet(running, {"named": old}, plan)
            await found.until_ready()
            yield found, old, new
            await until_at_rest(running)


async def test_dns_change(engines: list[EngineProcess], monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams on the old machine end there; once it is gone new connections go where the name points now, without a restart."""
    names = Names(monkeypatch)
    async with by_name(engines, names) as (found, old, new):
        must_continue(await found.ask(chat_body("Old", 20)))

        async def change(tokens: int) -> None:
            if tokens >= 10:
                names.port = new.port

        for answer in await asyncio.gather(
            *(found.ask(chat_body(f"Change {n}", 100), at_token=change) for n in range(6))
        ):
            must_continue(answer)
        before = new.requests
        await old.refuse()
        await found.until_ready()
        async with asyncio.timeout(PATIENCE_S):
            while new.requests == before:
                answer = await found.ask(chat_body("New", 20))
                if answer.status == 200:
                    must_continue(answer)
        await found.until_ready()
        must_continue(await found.ask(chat_body("Settled", 20)))
        await old.open()


async def test_dns_fails_for_a_while(engines: list[EngineProcess], monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is not known any more is a replica that is down, and back with its name; a stream under way is not touched."""
    names = Names(monkeypatch)
    async with by_name(engines, names) as (found, old, _):

        async def forget(tokens: int) -> None:
            if tokens >= 10:
                names.port = None

        must_continue(await found.ask(chat_body("Forget", 200), at_token=forget))
        await old.refuse()  # the connections that stand would serve on
        await until(lambda: found.lifecycles() == {"named": "down"}, found.lifecycles)
        assert (await found.ask(chat_body("Unknown", 5))).status == 503
        await old.open()
        names.port = old.port
        await found.until_ready()
        must_continue(await found.ask(chat_body("Known again", 20)))


async def test_dns_change_in_mid_stream(engines: list[EngineProcess], monkeypatch: pytest.MonkeyPatch) -> None:
    """The old machine is gone with its streams; they go on where the name points now, though it is the same replica."""
    names = Names(monkeypatch)
    async with by_name(engines, names) as (found, old, new):

        async def leave(tokens: int) -> None:
            if tokens >= 30 and names.port == old.port:
                names.port = new.port
                await old.refuse()

        answer = await found.ask(chat_body("Leave", 400), at_token=leave)
        if answer.faults:
            must_continue(answer)
        await found.until_ready()
        await old.open()
