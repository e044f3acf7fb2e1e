"""`penstock drain`, `restore` and `replicas` as processes, against an admin API."""

import signal

from tests.support.command_process import command
from tests.support.conditions import until
from tests.support.fake_admin import FakeAdmin


async def test_drain_counts_down_and_ends_on_release() -> None:
    """A line for each change, then exit code 0; the key travels; the deadline is the gateway's to keep."""
    async with FakeAdmin("h100", key="sesame") as gateway:
        arguments = ("drain", "h100", "--deadline", "60", "--gateway", gateway.url, "--key", "env:KEY")
        async with command(*arguments, environ={"KEY": "sesame"}) as process:
            await process.until_log(r"h100: draining, 3 requests left, (60|59|58) s to the deadline")
            assert gateway.posts == [("drain", {"deadline_s": 60.0})]
            gateway.replicas["h100"].requests = 1
            await process.until_log(r"h100: draining, 1 request left")
            gateway.release("h100")
            assert await process.exit_code() == 0
            await until(lambda: process.log.endswith("h100: released\n"))


async def test_drain_survives_a_gateway_that_is_away_for_a_while() -> None:
    """It may be restarting; the drain is asked after again."""
    async with FakeAdmin("h100") as gateway, command("drain", "h100", "--gateway", gateway.url) as process:
        await process.until_log("3 requests left")
        await gateway.leave()
        gateway.release("h100")
        await gateway.come_back()
        assert await process.exit_code() == 0


async def test_no_wait_does_not_wait() -> None:
    """Exit code 0 once the gateway has accepted."""
    async with (
        FakeAdmin("h100") as gateway,
        command("drain", "h100", "--no-wait", "--gateway", gateway.url) as process,
    ):
        assert await process.exit_code() == 0
        assert gateway.told == ["drain"]
        assert gateway.looks == 0


async def test_a_drain_that_somebody_ended_is_a_failure() -> None:
    """Exit code 1 and the reason: `&& systemctl stop` must not follow."""
    async with FakeAdmin("h100") as gateway, command("drain", "h100", "--gateway", gateway.url) as process:
        await process.until_log("3 requests left")
        gateway.forget()
        assert await process.exit_code() == 1
        await until(lambda: "somebody has ended the drain" in process.log)


async def test_a_passed_deadline_is_a_failure() -> None:
    """Exit code 1, with what is left."""
    async with FakeAdmin("h100") as gateway, command("drain", "h100", "--gateway", gateway.url) as process:
        await process.until_log("3 requests left")
        gateway.replicas["h100"].deadline_unix_s = 1.0
        assert await process.exit_code() == 1
        await until(lambda: "the deadline has passed with 3 requests left" in process.log)


async def test_refusals_are_told() -> None:
    """An unknown name, no gateway, nothing to restore: exit code 1, the gateway's own words, no traceback."""
    async with FakeAdmin("h100") as gateway:
        for arguments, said in (
            (("drain", "h200"), "No replica is called h200; there are h100."),
            (("restore", "h100"), "there is nothing to end"),
        ):
            async with command(*arguments, "--gateway", gateway.url) as process:
                assert await process.exit_code() == 1
                await until(lambda said=said, process=process: said in process.log)  # type: ignore[misc]
                assert "Traceback" not in process.log
    async with command("replicas", "--gateway", gateway.url) as process:
        assert await process.exit_code() == 1
        await until(lambda: "is the gateway there? name it with --gateway" in process.log)
        assert "Traceback" not in process.log


async def test_ctrl_c_stops_the_waiting_and_not_the_drain() -> None:
    """Exit code 130, one line; and `restore` ends it."""
    async with FakeAdmin("h100") as gateway:
        async with command("drain", "h100", "--gateway", gateway.url) as process:
            await process.until_log("3 requests left")
            process.signal(signal.SIGINT)
            assert await process.exit_code() == 130
            await until(lambda: "no longer waiting" in process.log)
            assert "Traceback" not in process.log
        assert gateway.replicas["h100"].lifecycle == "draining"
        async with command("restore", "h100", "--gateway", gateway.url) as process:
            assert await process.exit_code() == 0
            await until(lambda: "h100: ready" in process.log)


async def test_replicas_prints_a_table() -> None:
    """One line each, under a head."""
    async with FakeAdmin("h100", "a100-spot") as gateway:
        gateway.release("a100-spot")
        async with command("replicas", "--gateway", gateway.url) as process:
            assert await process.exit_code() == 0
            await until(lambda: process.log.count("\n") == 3)
            head, first, second = process.log.splitlines()
            assert head.split() == ["NAME", "LIFECYCLE", "REQUESTS", "DEADLINE", "WHY"]
            assert first.split() == ["h100", "ready", "3", "-", "-"]
            assert second.split() == ["a100-spot", "ready,", "released", "0", "-", "-"]
