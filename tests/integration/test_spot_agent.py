"""`penstock spot-agent` as a process, on each cloud: from the metadata service's word to the gateways' and back."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from tests.support.command_process import command
from tests.support.conditions import until
from tests.support.fake_admin import FakeAdmin
from tests.support.fake_imds import (
    AWS_ACTION,
    AWS_TOKEN,
    AZURE_EVENTS,
    GCP_MAINTENANCE,
    GCP_PREEMPTED,
    FakeImds,
    Trouble,
)
from tests.support.gateway_process import GatewayProcess

NAME = "a100-spot"
# What a proxy would be found by; nobody listens there.
PROXIES = {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}


@asynccontextmanager
async def agent(imds: FakeImds, *gateways: FakeAdmin, flags: tuple[str, ...] = ()) -> AsyncIterator[GatewayProcess]:
    """With a proxy in its environment, which it must ignore, and a key."""
    urls = [flag for gateway in gateways for flag in ("--gateway", gateway.url)]
    environ = {**PROXIES, "KEY": "sesame"}
    arguments = ("--replica", NAME, "--metadata-url", imds.url, "--key", "env:KEY", *urls, *flags)
    async with command("spot-agent", *arguments, environ=environ) as process:
        yield process


@asynccontextmanager
async def scene(cloud: str, gateways: int = 1) -> AsyncIterator[tuple[FakeImds, list[FakeAdmin]]]:
    async with AsyncExitStack() as stack:
        imds = await stack.enter_async_context(FakeImds(cloud))
        admins = [await stack.enter_async_context(FakeAdmin(NAME, key="sesame")) for _ in range(gateways)]
        yield imds, admins


async def test_an_aws_interruption_is_told_watched_and_ends_the_agent_on_release() -> None:
    """Token, 404, notice, countdown, release, exit code 0; a refused token and a rebalance hint on the way."""
    async with scene("aws") as (imds, [gateway]), agent(imds, gateway, flags=("--exit-on-release",)) as process:
        await process.until_log("listening to aws")  # found by asking all three
        await process.until_log(f"knows {NAME}, which is ready")
        await imds.until_asked(AWS_ACTION)
        assert gateway.posts == []
        imds.recommend_rebalance()
        await gateway.until_told("rebalance")
        imds.forget_tokens()
        imds.interrupt(in_s=120)
        await gateway.until_told("rebalance", "reclaim")
        hint, notice = gateway.notices
        assert (hint["provider"], hint["deadline_unix_s"]) == ("aws", None)
        assert notice["provider"] == "aws"
        assert notice["id"].startswith("terminate@")
        assert notice["observed_unix_s"] <= time.time() < notice["deadline_unix_s"]  # noqa: TID251 - wall time, as the contract
        assert imds.tokens_given >= 3  # detection, the first, after the refusal
        gateway.replicas[NAME].requests = 1
        await process.until_log("1 requests left")
        gateway.release()
        assert await process.exit_code() == 0
        await until(lambda: "released by the gateway: the machine may go" in process.log)
        assert "Traceback" not in process.log


async def test_a_gcp_preemption_reaches_two_gateways() -> None:
    """From a hanging GET; the machine may go only once both have let go; the agent keeps watching; SIGTERM ends it cleanly."""
    async with scene("gcp", 2) as (imds, [one, other]), agent(imds, one, other) as process:
        await imds.until_asked(GCP_PREEMPTED, times=2)  # the second hangs
        await imds.preempt()
        await one.until_told("reclaim")
        await other.until_told("reclaim")
        assert one.notices == other.notices
        one.release()
        await process.until_log(f"{one.url}: released")
        assert "the machine may go" not in process.log
        other.release()
        await process.until_log("released by all 2 gateways: the machine may go")
        await imds.set_value(GCP_MAINTENANCE, "TERMINATE_ON_HOST_MAINTENANCE")  # milder: nobody is told
        await imds.set_value(GCP_PREEMPTED, "FALSE")
        await one.until_told("reclaim", "restore", "maintenance")
        process.signal(signal.SIGTERM)
        assert await process.exit_code() == 0
        await until(lambda: "stopped" in process.log)
        assert "Traceback" not in process.log


async def test_an_azure_preemption_is_acknowledged_once_released() -> None:
    """A slow first answer; other machines' events are theirs; StartRequests only after the gateway has let go."""
    async with scene("azure") as (imds, [gateway]):
        imds.hold_events = asyncio.Event()
        async with agent(imds, gateway, flags=("--exit-on-release",)) as process:
            await imds.until_asked(AZURE_EVENTS)
            imds.schedule(event_id="theirs", resources=("gpu-spot_70",))
            imds.schedule("Freeze", event_id="frozen")
            imds.schedule(event_id="ours")
            imds.hold_events.set()
            await gateway.until_told("reclaim")
            await gateway.until(lambda admin: admin.looks > 2)
            assert [notice["id"] for notice in gateway.notices] == ["ours"]
            assert imds.started_events == []
            gateway.release()
            assert await process.exit_code() == 0
            assert imds.started_events == ["ours"]


@pytest.mark.parametrize("cloud", ["aws", "gcp", "azure"])
async def test_a_withdrawn_notice_is_taken_back(cloud: str) -> None:
    """The replica serves again, and the agent goes on watching."""
    async with scene(cloud) as (imds, [gateway]), agent(imds, gateway, flags=("--provider", cloud)) as process:
        imds.interrupt()
        imds.schedule()
        await imds.preempt()
        await gateway.until_told("reclaim")
        imds.withdraw()
        imds.cancel_events()
        await imds.set_value(GCP_PREEMPTED, "FALSE")
        await gateway.until_told("reclaim", "restore")
        await process.until_log(f"{NAME} is ready again")
        assert imds.started_events == []


async def test_an_earlier_deadline_is_told_again() -> None:
    """An Azure event that has started is due now."""
    async with scene("azure") as (imds, [gateway]), agent(imds, gateway):
        imds.schedule(in_s=600)
        await gateway.until_told("reclaim")
        imds.cancel_events()
        imds.schedule(started=True)
        await gateway.until_told("reclaim", "reclaim")
        first, second = (notice["deadline_unix_s"] for notice in gateway.notices)
        assert second < first


async def test_a_gateway_that_is_down_is_told_when_it_is_back() -> None:
    """The other is told meanwhile; one that is restarted and has forgotten is told again."""
    async with scene("aws", 2) as (imds, [one, other]), agent(imds, one, other) as process:
        await process.until_log("listening to aws")
        await one.leave()
        imds.interrupt()
        await other.until_told("reclaim")
        await process.until_log(f"gateway {one.url}: .*trying again")
        await one.come_back()
        await one.until_told("reclaim")
        await other.leave()
        other.forget()
        await process.until_log(f"gateway {other.url}: .*trying again")
        await other.come_back()
        await other.until_told("reclaim", "reclaim")


async def test_a_metadata_service_in_trouble_is_asked_again() -> None:
    """Garbage, a redirect, a cut connection, no token, nobody there: a line each, no post, and the notice that comes after is told."""
    async with scene("aws") as (imds, [gateway]):
        imds.troubles = {
            AWS_ACTION: [
                Trouble(body=b"<html>maintenance</html>"),
                Trouble(status=302, location=f"{gateway.url}/admin/replicas/{NAME}/drain"),
                Trouble(cut=True),
            ],
            AWS_TOKEN: [Trouble(status=503)],
        }
        async with agent(imds, gateway, flags=("--provider", "aws")) as process:
            await process.until_log("aws instance-action: answers again")
            assert gateway.posts == []
            await imds.leave()
            await process.until_log("All connection attempts failed|Server disconnected")
            await imds.come_back()
            imds.interrupt("stop")
            await gateway.until_told("reclaim")
            for word in ("not JSON", "answered 503", "a redirect, which is not followed"):
                assert word in process.log
            assert "Traceback" not in process.log


async def test_a_wrong_key_or_name_is_said_at_the_start() -> None:
    """Not when the machine is going."""
    async with scene("gcp", 2) as (imds, [one, other]):
        one._key, other.replicas = "other", {}
        async with agent(imds, one, other) as process:
            await process.until_log(r"refused the key \(401.*server.admin_key.*tried again until it is taken")
            await process.until_log(f"refused with 404: No replica is called {NAME}")


async def test_sigterm_ends_it_in_the_middle_of_everything() -> None:
    """With a notice told, a gateway that does not answer and a hanging GET: exit code 0, at once."""
    async with scene("gcp", 2) as (imds, [one, other]), agent(imds, one, other) as process:
        await process.until_log("listening to gcp")
        await other.leave()
        await imds.preempt()
        await one.until_told("reclaim")
        process.signal(signal.SIGTERM)
        assert await process.exit_code() == 0
        await until(lambda: "stopped" in process.log)
        assert "Traceback" not in process.log


async def test_no_cloud_is_said_with_what_was_tried() -> None:
    """Exit code 1, one line, and what to do."""
    async with scene("none") as (imds, [gateway]):
        imds.troubles = {
            path: [Trouble(status=404)] * 9 for path in (AWS_TOKEN, "/computeMetadata/v1/", "/metadata/instance/compute/name")
        }  # fmt: skip
        async with agent(imds, gateway) as process:
            assert await process.exit_code() == 1
            await until(lambda: "--provider" in process.log)
            for word in ("aws: ", "gcp: ", "azure: ", "hop limit"):
                assert word in process.log
            assert "Traceback" not in process.log
