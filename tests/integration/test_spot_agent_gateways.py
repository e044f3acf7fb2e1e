"""The agent in this process, with a source that says what the test wants, in front of fake gateways."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

import pytest

from backends.spot_agent.admin_client import AdminClient, AdminError, gateway_url
from backends.spot_agent.agent import Agent
from backends.spot_agent.metadata import MetadataError
from backends.spot_agent.notice import Kind, Notice, Provider, Reading
from tests.support.conditions import until
from tests.support.fake_admin import FakeAdmin
from tests.support.loopback_http import Asked, LoopbackServer, Says

NAME = "a100-spot"
# When this file was read, which may be long before its tests run: what is to come is a day away.
NOW = time.time()  # noqa: TID251 - deadlines are wall time
RECLAIM = Notice(Provider.AZURE, Kind.RECLAIM, "r", NOW, NOW + 86_400, "preempt", may_hasten=True)
HINT = Notice(Provider.AZURE, Kind.REBALANCE, "h", NOW, None, "hint")


class Said:
    """A source: each look waits for the next thing that the test says."""

    name = "said"
    interval_s = 0.0

    def __init__(self) -> None:
        self.sayings: asyncio.Queue[tuple[Notice, ...]] = asyncio.Queue()
        self.hastened: list[str] = []
        self.refusals = 0

    def say(self, *notices: Notice) -> None:
        self.sayings.put_nowait(notices)

    async def look(self) -> Reading:
        return Reading(await self.sayings.get())

    async def hasten(self, notices: Sequence[Notice]) -> None:
        if self.refusals:
            self.refusals -= 1
            raise MetadataError("not now")
        self.hastened += [notice.id for notice in notices]


@asynccontextmanager
async def running(
    *gateways: FakeAdmin, until_released: bool = False
) -> AsyncIterator[tuple[Said, "asyncio.Task[None]"]]:
    async with AsyncExitStack() as stack:
        for gateway in gateways:
            await stack.enter_async_context(gateway)
        clients = [await stack.enter_async_context(AdminClient(gateway.url)) for gateway in gateways]
        source = Said()
        agent = Agent([source], clients, replica=NAME, wall=time.time)  # noqa: TID251 - deadlines are wall time
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(agent.run(until_released=until_released))
            yield source, task
            task.cancel()


async def test_a_withdrawn_hint_leaves_an_operators_drain() -> None:
    """The hint had drained nothing; who did, ends it."""
    gateway = FakeAdmin()
    async with running(gateway) as (source, _):
        source.say(HINT)
        await gateway.until_told("rebalance")
        gateway.replicas[NAME].lifecycle = "draining"
        looks = gateway.looks
        source.say()
        await gateway.until(lambda admin: admin.looks > looks)
        source.say(RECLAIM)
        await gateway.until_told("rebalance", "reclaim")


async def test_a_hint_outlives_the_reclaim_that_was_withdrawn() -> None:
    """The reclaim is taken back, and what is left is told again."""
    gateway = FakeAdmin()
    async with running(gateway) as (source, _):
        source.say(HINT)
        await gateway.until_told("rebalance")
        source.say(HINT, RECLAIM)
        await gateway.until_told("rebalance", "reclaim")
        source.say(HINT)
        await gateway.until_told("reclaim", "restore", "rebalance")


async def test_a_refused_restore_is_no_failure() -> None:
    """Where somebody has already restored it there is nothing to end, and the next notice is told as ever."""
    gateway = FakeAdmin()
    async with running(gateway) as (source, _):
        source.say(RECLAIM)
        await gateway.until_told("reclaim")
        gateway.forget()
        source.say()
        await gateway.until(lambda admin: admin.refused == ["restore"])
        source.say(replace(RECLAIM, id="r2"))
        await gateway.until_told("reclaim", "reclaim")
        assert "restore" not in gateway.told


async def test_another_event_is_told_also_where_the_first_ones_end_was_not_seen() -> None:
    """Of the same kind, for the same moment: the gateway hears of it."""
    gateway = FakeAdmin()
    async with running(gateway) as (source, _):
        source.say(RECLAIM)
        await gateway.until_told("reclaim")
        source.say(replace(RECLAIM, id="r2"))
        await gateway.until(lambda admin: [notice["id"] for notice in admin.notices] == ["r", "r2"])
        assert gateway.refused == []


async def test_a_cut_answer_is_told_again() -> None:
    """Twice is harmless, never is not; 5xx and garbage likewise."""
    gateway = FakeAdmin()
    async with running(gateway) as (source, _):
        await gateway.until(lambda admin: admin.looks == 1)
        gateway.troubles = [None, Says(503), Says(200, b"<html>"), Says(200, b"{}")]
        source.say(RECLAIM)
        await gateway.until_told("reclaim")
        assert gateway.troubles == []


async def test_released_means_by_all_and_is_passed_on_once() -> None:
    """Also where the cloud does not listen at first; the agent ends only if so asked."""
    one, other = FakeAdmin(), FakeAdmin()
    async with running(one, other, until_released=True) as (source, task):
        source.refusals = 2
        source.say(RECLAIM)
        await one.until_told("reclaim")
        await other.until_told("reclaim")
        one.release()
        looks = other.looks
        await other.until(lambda admin: admin.looks > looks + 1)
        assert (source.hastened, task.done()) == ([], False)
        other.release()
        await task
        assert source.hastened == ["r"]


async def test_a_cloud_that_takes_no_word_does_not_hold_the_agent() -> None:
    """It would take the machine anyway."""
    gateway = FakeAdmin()
    async with running(gateway, until_released=True) as (source, task):
        source.refusals = 99
        source.say(RECLAIM)
        await gateway.until_told("reclaim")
        gateway.release()
        await task
        assert source.hastened == []


async def test_a_passed_deadline_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """With what is left; and nobody is asked any more, until another notice."""
    gateway = FakeAdmin()
    with caplog.at_level(logging.INFO, "penstock.spot_agent"):
        async with running(gateway) as (source, _):
            source.say(replace(RECLAIM, deadline_unix_s=time.time() + 1))  # noqa: TID251 - deadlines are wall time
            await until(lambda: "the deadline has passed: 3 requests left" in caplog.text)
            source.say()
            await gateway.until_told("reclaim", "restore")


async def test_the_key_goes_only_to_the_gateway() -> None:
    """A redirect is a refusal, not a way."""
    strangers: list[Asked] = []

    async def stranger(asked: Asked) -> Says:
        strangers.append(asked)
        return Says()

    async with LoopbackServer(stranger) as elsewhere:

        async def moved(asked: Asked) -> Says:
            assert asked.headers["authorization"] == "Bearer k"
            return Says(307, headers={"location": elsewhere.url + asked.path})

        async with LoopbackServer(moved) as gateway, AdminClient(gateway.url, "k") as client:
            with pytest.raises(AdminError, match="refused with 307"):
                await client.restore("a")
    assert strangers == []


async def test_names_are_quoted() -> None:
    """A replica's name is one segment of the path, whatever it is."""
    paths: list[str] = []

    async def gateway(asked: Asked) -> Says:
        paths.append(asked.path)
        return Says(404)

    async with LoopbackServer(gateway) as server, AdminClient(server.url) as client:
        with pytest.raises(AdminError, match="it does not say why"):
            await client.replica("a/../b?c")
    assert paths == ["/admin/replicas/a%2F..%2Fb%3Fc"]


@pytest.mark.parametrize(
    "text",
    ["", "10.0.0.2:8080", "ftp://h", "http://", "http://h:99999", "http://h:0", "http://h/v1", "http://u:p@h", "http://h?x=1"],
)  # fmt: skip
def test_what_is_no_gateways_url(text: str) -> None:
    """A path, a password or another scheme is a mistake that would only show when a notice is to be told."""
    with pytest.raises(ValueError, match="write http://HOST:PORT"):
        gateway_url(text)
    assert gateway_url("https://h:1/") == "https://h:1"
