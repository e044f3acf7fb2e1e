"""`penstock top` as a process: once for a script, live on a terminal, and what it says where there is nothing to see."""

import asyncio
import fcntl
import json
import os
import re
import struct
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from router.board.document import Live
from router.board.feed import event
from tests.support.board_documents import card, line, live
from tests.support.command_process import command
from tests.support.loopback_http import Asked, LoopbackServer, Says
from tests.support.two_workers import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
PENSTOCK = Path(sys.executable).with_name("penstock")


class Fleet(LoopbackServer):
    """A gateway's two routes; a stream has one event and ends, so that each connection is a new look."""

    def __init__(self) -> None:
        super().__init__(self._answer)
        self.shown = live(
            card("h100", kv_blocks=100, held_blocks=50, reserved_blocks=60), placements=(line("story-1"),)
        )
        self.key: str | None = None
        self.refusal: Says | None = None

    async def _answer(self, asked: Asked) -> Says:
        if self.refusal is not None:
            return self.refusal
        if self.key is not None and asked.headers.get("authorization") != f"Bearer {self.key}":
            return Says(401, json.dumps({"error": {"message": "who are you?"}}).encode())
        body = msgspec.json.encode(self.shown) if asked.path == "/admin/fleet" else event(self.shown)
        return Says(body=body)


class Screen:
    """A terminal of 80 columns and 24 lines in which a command runs."""

    def __init__(self, descriptor: int, process: asyncio.subprocess.Process) -> None:
        self._descriptor = descriptor
        self._process = process
        self.text = ""

    def press(self, keys: bytes) -> None:
        os.write(self._descriptor, keys)

    async def until(self, pattern: str) -> str:
        """What was drawn from the match on is forgotten with it."""
        async with asyncio.timeout(PATIENCE_S):
            while not (found := re.search(pattern, self.text)):
                await asyncio.sleep(0.02)
        self.text = self.text[found.end() :]
        return found[0]

    @property
    def echoes(self) -> bool:
        return bool(termios.tcgetattr(self._descriptor)[3] & termios.ECHO)

    async def exit_code(self) -> int:
        async with asyncio.timeout(PATIENCE_S):
            return await self._process.wait()

    def read(self) -> None:
        try:
            self.text += re.sub(
                r"\x1b\[[0-9;?]*[a-zA-Z]", "", os.read(self._descriptor, 2**16).decode(errors="replace")
            )
        except OSError:  # the command has ended
            asyncio.get_running_loop().remove_reader(self._descriptor)


@asynccontextmanager
async def on_a_terminal(*arguments: str, **environ: str) -> AsyncIterator[Screen]:
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = await asyncio.create_subprocess_exec(
        PENSTOCK, "top", *arguments, stdin=its, stdout=its, stderr=its, preexec_fn=_own_terminal,
        env={"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "LANG": "C.UTF-8", **environ},
    )  # fmt: skip
    os.close(its)
    screen = Screen(ours, process)
    asyncio.get_running_loop().add_reader(ours, screen.read)
    try:
        yield screen
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        asyncio.get_running_loop().remove_reader(ours)
        os.close(ours)


def _own_terminal() -> None:
    """As a shell would: Ctrl-C reaches the command."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


async def test_once_prints_a_frame_and_its_document() -> None:
    """Exit code 0; as JSON it is the gateway's own, byte for byte; the key travels. Without a terminal there are no colours."""
    async with Fleet() as gateway:
        gateway.key = "sesame"
        arguments = ("top", "--once", "--gateway", gateway.url, "--key", "env:KEY")
        async with command(*arguments, environ={"KEY": "sesame"}) as process:
            await process.until_log(r"h100 +spot +2\.00 .* 60% ")
            assert await process.exit_code() == 0
            assert "\x1b" not in process.log
        async with command(*arguments, "--json", environ={"KEY": "sesame"}) as process:
            await process.until_log(r"\}\n")
            assert await process.exit_code() == 0
            assert msgspec.json.decode(process.log, type=Live) == gateway.shown
            assert process.log == msgspec.json.encode(gateway.shown).decode() + "\n"


async def test_without_a_terminal_one_frame_is_all() -> None:
    """A pipe is not drawn over."""
    async with Fleet() as gateway, command("top", "--gateway", gateway.url) as process:
        await process.until_log("story-1")
        assert await process.exit_code() == 0


async def test_errors_say_what_to_do() -> None:
    """Nobody there, the wrong key, another program, another version, not from here: exit code 1, one line, no traceback."""
    foreign = json.dumps({"error": {"message": "/admin asks for no key, so it is served only on loopback"}}).encode()
    cases = (
        (
            Says(401, b'{"error":{"message":"wrong key"}}'),
            r"401: wrong key\); --key must be the gateway's server.admin_key",
        ),
        (Says(404, foreign), "served only on loopback"),
        (Says(404, b"<html>"), "no gateway of this version: it knows no /admin/live"),
        (Says(200, b'{"version": 99}'), "use the penstock that it came with"),
        (Says(200, b"[]"), "use the penstock that it came with"),
    )
    async with Fleet() as gateway:
        for refusal, said in cases:
            gateway.refusal = refusal
            async with command("top", "--once", "--gateway", gateway.url) as process:
                await process.until_log(said)
                assert await process.exit_code() == 1
                assert len(process.log.strip().splitlines()) == 1
        away = gateway.url
    async with command("top", "--once", "--gateway", away) as process:
        await process.until_log("is the gateway there\\? name it with --gateway")
        assert await process.exit_code() == 1
    async with on_a_terminal("--gateway", away) as screen:
        await screen.until("is the gateway there")
        assert await screen.exit_code() == 1


async def test_a_terminal_shows_the_fleet_until_q() -> None:
    """A frame at each event; keys sort; q ends with exit code 0."""
    async with Fleet() as gateway, on_a_terminal("--gateway", gateway.url) as screen:
        await screen.until("h100 ")
        await screen.until("now by name")
        gateway.shown = live(card("h100"), card("a100", running=7))
        await screen.until("a100 ")
        screen.press(b"k")
        await screen.until("now by kv")
        screen.press(b"q")
        assert await screen.exit_code() == 0
        assert "Traceback" not in screen.text


async def test_a_gateway_that_restarts_is_waited_for() -> None:
    """What it said last stays, with a line that it is away and why; then it is live again."""
    async with Fleet() as gateway, on_a_terminal("--gateway", gateway.url, NO_COLOR="1") as screen:
        await screen.until("h100 ")
        await gateway.leave()
        await screen.until(f"{gateway.url} is away: All connection attempts failed")
        gateway.shown = live(card("after-restart"))
        await gateway.come_back()
        await screen.until("after-restart")
        await screen.until("now by name")
        screen.press(b"\x03")
        assert await screen.exit_code() == 130
        assert "Traceback" not in screen.text


async def test_a_key_that_is_refused_later_ends_it() -> None:
    """A gateway that came back with another key will not change its mind."""
    async with Fleet() as gateway, on_a_terminal("--gateway", gateway.url) as screen:
        await screen.until("h100 ")
        gateway.key = "another"
        await screen.until("refused the key")
        assert await screen.exit_code() == 1


async def test_the_terminal_is_left_as_it_was() -> None:
    """While it runs keys are not echoed; after it they are."""
    async with Fleet() as gateway, on_a_terminal("--gateway", gateway.url) as screen:
        await screen.until("h100 ")
        assert not screen.echoes
        screen.press(b"q")
        assert await screen.exit_code() == 0
        assert screen.echoes
