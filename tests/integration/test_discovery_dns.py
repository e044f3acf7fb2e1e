"""The DNS source against a name server of ours: addresses, services, names that vanish, servers that fail."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from backends.discovery.dns import DnsSource
from backends.discovery.found import Found
from config.discovery import Dns
from tests.support.conditions import until
from tests.support.fake_dns import FakeDns

NAME = "vllm.example.test"


@asynccontextmanager
async def listening(server: FakeDns, **settings: Any) -> AsyncIterator[list[Sequence[Found]]]:
    heard: list[Sequence[Found]] = []
    where = {"name": NAME, "nameservers": [server.address], "interval_s": 0.02}
    config = Dns.model_validate({**where, **settings})
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(DnsSource(config).run(heard.append))
        yield heard
        task.cancel()


def urls(heard: list[Sequence[Found]]) -> list[str | None]:
    return [found.replica.url for found in heard[-1]] if heard else ["nothing yet"]


async def test_every_address_is_a_replica():
    """IPv4 and IPv6, named after their addresses; a change is told once."""
    async with FakeDns() as server:
        server.records[NAME, "A"] = ["10.0.0.1", "10.0.0.2"]
        server.records[NAME, "AAAA"] = ["fd00::1"]
        async with listening(server, port=8000, prefix="h100") as heard:
            await until(lambda: len(heard) == 1)
            assert urls(heard) == ["http://10.0.0.1:8000", "http://10.0.0.2:8000", "http://[fd00::1]:8000"]
            assert [found.replica.name for found in heard[0]] == ["h100-10-0-0-1", "h100-10-0-0-2", "h100-fd00--1"]
            server.records[NAME, "A"] = ["10.0.0.2"]
            await until(lambda: len(heard) == 2)
            assert urls(heard) == ["http://10.0.0.2:8000", "http://[fd00::1]:8000"]
            asked = server.asked
            await until(lambda: server.asked > asked + 4)
            assert len(heard) == 2


async def test_services_tell_their_ports():
    """SRV records: host and port of each."""
    async with FakeDns() as server:
        server.records[NAME, "SRV"] = ["0 1 8001 a.example.test.", "0 1 8002 b.example.test."]
        async with listening(server, srv=True) as heard:
            await until(lambda: urls(heard) == ["http://a.example.test:8001", "http://b.example.test:8002"])


@pytest.mark.parametrize("trouble", ["failing", "silent"])
async def test_while_nobody_can_say_the_fleet_stays(trouble: str, caplog: pytest.LogCaptureFixture):
    """A name server that fails or is away takes no machine away; it is said once."""
    async with FakeDns() as server:
        server.records[NAME, "A"] = ["10.0.0.1"]
        async with listening(server, port=8000) as heard:
            await until(lambda: urls(heard) == ["http://10.0.0.1:8000"])
            setattr(server, trouble, True)
            server.records[NAME, "A"] = ["10.0.0.9"]
            await until(lambda: "no answer" in caplog.text)
            assert urls(heard) == ["http://10.0.0.1:8000"]
            setattr(server, trouble, False)
            await until(lambda: urls(heard) == ["http://10.0.0.9:8000"])


async def test_a_swallowed_cancellation_ends_it_all_the_same(monkeypatch: pytest.MonkeyPatch):
    """As asyncio.wait_for of Python 3.11 does where the answer comes together with it: the gateway must not wait for ever for its end."""
    looks = 0

    async def swallows(_source: DnsSource, _resolver: object) -> None:
        nonlocal looks
        looks += 1
        assert looks == 1, "it goes on"
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    monkeypatch.setattr(DnsSource, "_look", swallows)
    async with FakeDns() as server, listening(server, port=8000) as heard:
        await until(lambda: looks == 1)
    assert heard == []


async def test_a_name_that_is_gone_is_believed_the_third_time():
    """One empty answer is a hiccup."""
    async with FakeDns() as server:
        server.records[NAME, "A"] = ["10.0.0.1"]
        async with listening(server, port=8000, empty_after=3) as heard:
            await until(lambda: len(heard) == 1)
            server.records.clear()
            asked = server.asked
            await until(lambda: len(heard) == 2)
            assert urls(heard) == []
            assert server.asked - asked >= 3
