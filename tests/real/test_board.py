"""The board in a real browser over a real gateway: what a newcomer sees, and that it follows what happens to the fleet."""

import asyncio
import signal
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.support.asgi import chat
from tests.support.browser import Tab, tab
from tests.support.engine_process import EngineProcess, replica
from tests.support.gateway_process import GatewayProcess, serving, started
from tests.support.patience import PATIENCE_S
from tests.support.ports import free_port

pytestmark = pytest.mark.real

KEY = "0123456789abcdef-of-the-admin"
NAMES = ("a100-on-demand", "a100-spot", "h100-reserved")  # of the embedded default


async def is_live(found: Tab) -> None:
    await found.page.wait_for_selector("#state[data-state=live]")
    await found.page.wait_for_selector(".card .name")


async def post(gateway: GatewayProcess, path: str, body: object) -> Any:
    async with httpx.AsyncClient(timeout=PATIENCE_S) as http:
        answer = await http.post(f"{gateway.url}{path}", json=body)
        assert answer.is_success, answer.text
        return answer.json()


async def ask_in_chat(found: Tab, words: str) -> str:
    """The text of the answer's foot, once it is over."""
    answers = "document.querySelectorAll('.theirs').length"
    before = await found.page.evaluate(answers)
    await found.page.fill("#say", words)
    await found.page.keyboard.press("Enter")
    await found.until(f"{answers} === {before + 1} && !document.querySelector('#send').hidden")
    return await found.text(".theirs:last-of-type .from")


def write(folder: Path, **sections: object) -> Path:
    path = folder / "penstock.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


async def test_newcomer_sees_the_fleet_and_chats() -> None:
    """`serve` without a word of configuration: three cards that match, a chat whose answer names its replica, and its placement with why."""
    async with started("--port", "0") as gateway:
        await gateway.listens()
        async with tab(gateway.url) as found:
            await is_live(found)
            async with httpx.AsyncClient() as http:
                fleet = (await http.get(f"{gateway.url}/admin/fleet")).json()
            assert sorted(card["name"] for card in fleet["replicas"]) == list(NAMES)
            for told in fleet["replicas"]:
                shown = await found.card(told["name"])
                assert shown["price"].startswith(f"${told['usd_per_hour']:.2f}")
                assert shown["tier badge"] == told["cost_tier"].replace("_", " ")
                assert shown["running"] == f"0 / {told['max_num_seqs']}"
                assert (shown["models"], shown["word"]) == ("sim-8b", "ready")
            assert await found.text("#answer-cheapest") == "a100-spot"
            assert await found.text("#answer-fullest") == "all are empty"
            assert await found.page.is_visible("#no-placements")
            foot = await ask_in_chat(found, "Hello there")
            where = next(name for name in NAMES if name in foot)
            assert "first token" in foot
            assert "tokens" in foot
            assert len(await found.text(".theirs .text")) > 10
            await found.until_text("#placements li .where", where)
            await found.until_text("#placements li .outcome", "done")
            assert await found.text("#answer-last") == where
            await found.until_text(".theirs .why", "had room")
            await found.until_text("#requests", "/s")
            await found.page.click("#placements summary")
            await found.until_text("#placements .formula", where)
            await found.page.click("#placements .more button")
            await found.until_text("#placements .decision", '"request_id"')


async def test_drain_is_shown_and_ended() -> None:
    """Posted to the admin API: the card says so and counts down; restored, it is ready again. The chat goes elsewhere meanwhile."""
    async with started("--port", "0") as gateway:
        await gateway.listens()
        async with tab(gateway.url) as found:
            await is_live(found)
            foot = await ask_in_chat(found, "Hello")
            where = next(name for name in NAMES if name in foot)
            await post(gateway, f"/admin/replicas/{where}/drain", {"deadline_s": 300})
            await found.until_card(where, "word", "draining")
            assert "left" in (await found.card(where))["more"]
            assert where not in await ask_in_chat(found, "And now?")
            await post(gateway, f"/admin/replicas/{where}/restore", {})
            await found.until_card(where, "word", "ready")
            await post(gateway, "/admin/replicas/a100-spot/notice", {"provider": "aws", "kind": "reclaim"})
            await found.until_card("a100-spot", "word", "being reclaimed")
            await found.until("document.querySelector('#answer-cheapest').innerText !== 'a100-spot'")


async def test_dead_engine_is_shown_and_answers_go_on(tmp_path: Path) -> None:
    """An engine's process is killed under a stream: its card says down, and the answer's other half is the other replica's, marked so."""
    with EngineProcess(speed=0.25) as first, EngineProcess(speed=0.25, seed=1) as second:
        await first.ready()
        await second.ready()
        engines = {"one": first, "two": second}
        replicas = [replica(name, one.url, capacity={"max_num_seqs": 64}) for name, one in engines.items()]
        async with (
            serving(write(tmp_path, replicas=replicas, probe={"interval_s": 0.2})) as gateway,
            tab(gateway.url) as found,
        ):
            await is_live(found)
            await found.page.fill("#tokens", "400")
            await found.page.fill("#say", "Tell me a long story")
            await found.page.keyboard.press("Enter")
            await found.until("document.querySelector('.theirs .text')?.innerText.length > 100")
            where = await found.text(".theirs .from b")
            engines[where].kill()
            other = next(name for name in engines if name != where)
            await found.until_card(where, "word", "down")
            await found.until_text(".theirs .from", other)
            await found.until("!document.querySelector('#send').hidden")
            assert await found.page.locator(".theirs .failure").count() == 0
            assert len(await found.text(".theirs .text .mark-1")) > 10
            await found.until_text(".theirs .why", "placed 2 times")
            assert "down" in await found.text("#counts")


async def test_restarted_gateway_is_found_again(tmp_path: Path) -> None:
    """Killed and started again at the same port: offline, said so, and then the new one's figures, without a reload."""
    port = str(free_port())
    async with started("--port", port) as gateway:
        await gateway.listens()
        url = gateway.url
        async with tab(url) as found:
            found.expected = ["net::ERR"]
            await is_live(found)
            await ask_in_chat(found, "Hello")
            await found.until("document.querySelectorAll('#placements li').length === 1")
            gateway.kill()
            await found.page.wait_for_selector("#state[data-state=offline]")
            assert "trying again" in await found.text("#notice")
            async with started("--port", port) as again:
                await again.listens()
                await is_live(found)
                await found.until("document.querySelectorAll('#placements li').length === 0")
                assert await found.page.is_hidden("#notice")
                assert await found.page.locator(".card").count() == len(NAMES)


async def test_draining_gateway_says_so_and_ends() -> None:
    """SIGTERM under a stream: the board says that the gateway drains, and the open page does not hold it up."""
    async with started("--port", "0") as gateway:
        await gateway.listens()
        async with tab(gateway.url) as found:
            found.expected = ["net::ERR"]
            await is_live(found)
            body = chat("Hello", model="sim-8b", stream=True, max_tokens=8000, ignore_eos=True)
            async with httpx.AsyncClient(timeout=PATIENCE_S) as http, asyncio.TaskGroup() as tasks:
                asking = tasks.create_task(http.post(f"{gateway.url}/v1/chat/completions", json=body))
                await found.until(
                    "[...document.querySelectorAll('.card')].some(one => one.parts.running.innerText.startsWith('1 '))"
                )
                gateway.signal(signal.SIGTERM)
                await found.page.wait_for_selector("#state[data-state=draining]")
                asking.cancel()  # it has lasted until all was seen
            assert await gateway.exit_code() == 0
            await found.page.wait_for_selector("#state[data-state=offline]")


async def test_key_opens_the_board(tmp_path: Path) -> None:
    """A gateway with `server.admin_key`: the page asks for it, a wrong one is refused, the right one shows the fleet and its decisions."""
    simulated = [{"name": "sim", "backend": "simulated", "models": ["m"], "cost": {"usd_per_hour": 1.0}}]
    async with (
        serving(write(tmp_path, server={"admin_key": KEY}, replicas=simulated)) as gateway,
        tab(gateway.url) as found,
    ):
        found.expected = ["401"]
        await found.page.wait_for_selector("#key-form")
        await found.page.keyboard.type("not the key at all")
        await found.page.keyboard.press("Enter")
        await found.until_text("#key-words", "That is not the key")
        await found.page.keyboard.type(KEY)
        await found.page.keyboard.press("Enter")
        await is_live(found)
        assert "sim" in await ask_in_chat(found, "Hello")
        await found.until_text(".theirs .why", "had room")


async def test_chat_asks_for_an_api_key_where_the_gateway_does(tmp_path: Path) -> None:
    """The board is this machine's; the chat is a caller like any other: refused, then asked for a key, then answered."""
    simulated = [{"name": "sim", "backend": "simulated", "models": ["m"]}]
    secret = "the-key-of-acme-0123456789abcdefgh"
    async with (
        serving(write(tmp_path, auth={"secret_keys": f"acme={secret}"}, replicas=simulated)) as gateway,
        tab(gateway.url) as found,
    ):
        found.expected = ["401"]
        await is_live(found)
        assert not await found.page.is_visible("#api-key")
        await ask_in_chat(found, "Hello")
        assert await found.page.is_visible("#api-key")
        await found.page.fill("#api-key", secret)
        assert "sim" in await ask_in_chat(found, "Hello again")


async def test_own_listener_and_workers_show_one_fleet(tmp_path: Path) -> None:
    """Two workers behind two listeners: the board at the admin's shows what both do, and chats through it."""
    simulated = [{"name": "sim", "backend": "simulated", "models": ["m"], "cost": {"usd_per_hour": 1.0}}]
    config = write(tmp_path, server={"host": "0.0.0.0", "admin_port": 0, "workers": 2}, replicas=simulated)
    async with serving(config) as gateway:
        admin = (await gateway.until_log(r"Board: (http://\S+)/ "))[1]
        async with tab(admin) as found:
            await is_live(found)
            assert "2 workers" in await found.text("#release")
            for words in ("one", "two", "three"):
                assert "sim" in await ask_in_chat(found, words)
            await found.until("document.querySelectorAll('#placements li').length === 3")
