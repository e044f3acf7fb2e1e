"""The board in a real browser over a feed of the test's own: what is shown of each state, and that nothing else is ever asked for."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI, Request, Response
from starlette.responses import StreamingResponse

from router.board.document import Live, Money, QueueRow
from tests.support.board_feed import Feed, Fleet, board_over, card, line, live, unix
from tests.support.browser import Tab, tab

pytestmark = pytest.mark.real

KEY = "0123456789abcdef-of-the-admin"


def three() -> Live:
    return live(
        card("big", cost_tier="reserved", usd_per_hour=2.5, held_blocks=300, reserved_blocks=400, foreign_blocks=100, running=7, waiting=2,
             output_tokens_per_s=812.4, usd_per_million_output_tokens=0.85),
        card("small", cost_tier="spot", usd_per_hour=1.2),
        card("other", usd_per_hour=3.0, models=("n",)),
        money=Money(usd_per_hour=6.7, on_demand_usd_per_hour=9.9),
        queue=(QueueRow(model="m", service_tier="flex", tenant="t-1", depth=4, tokens=900, oldest_s=2.5),),
        placements=(line("r1", "big", cost_tier="reserved", reason="prefix_hit"),),
    )  # fmt: skip


async def live_tab(found: Tab) -> None:
    await found.page.wait_for_selector("#state[data-state=live]")
    await found.page.wait_for_selector(".card .name:text('big')")


async def test_first_document_answers_three_questions() -> None:
    """Cheapest, fullest and where the last request went stand at the top in words, and as marks on the cards."""
    async with board_over(Feed(three)) as url, tab(url) as found:
        await live_tab(found)
        assert await found.text("#answer-cheapest") == "small"
        assert "$1.20 an hour" in await found.text("#answer-cheapest-why")
        assert await found.text("#answer-fullest") == "big"
        assert "50% of its KV cache" in await found.text("#answer-fullest-why")
        assert "8,000 tokens free" in await found.text("#answer-fullest-why")
        assert await found.text("#answer-last") == "big"
        assert await found.text("#spend") == "$6.70/h"
        assert "$9.90/h all on demand: 32% saved" in await found.text("#spend-more")
        big = await found.card("big")
        assert (big["running"], big["engine"], big["rate"], big["mtok"]) == ("7 / 256", "2", "812", "0.85")
        assert big["tags"].split("\n") == ["fullest", "last request"]
        assert (await found.card("small"))["tags"] == "cheapest"
        bar = await found.page.get_attribute(".card:has-text('big') .bar", "aria-label")
        assert bar == "KV cache: 30% held, 10% expected growth, 10% held for others, 50% free"
        assert "2.5 s" in await found.text("#queue tbody")


async def test_later_documents_change_what_they_name() -> None:
    """A card that is told again changes, one that is gone goes, and the countdown of a notice runs by the gateway's clock."""
    feed = Feed(three)
    async with board_over(feed) as url, tab(url) as found:
        await live_tab(found)
        told = card(
            "small",
            cost_tier="spot",
            lifecycle="reclaiming",
            reason="reclaim",
            why="aws takes it away",
            deadline_unix_s=unix() + 100,
        )
        feed.push(live(told, whole=False, gone=("other",), draining=True))
        await found.until_card("small", "word", "being reclaimed")
        assert (await found.card("small"))["more"].startswith(("1:40 left", "1:39 left"))
        await found.until("document.querySelectorAll('.card').length === 2")
        assert (await found.card("big"))["running"] == "7 / 256"
        assert await found.text("#answer-cheapest") == "big"
        assert "drains" in await found.text("#notice")
        assert await found.text("#counts") == "● 1 ready\n◐ 1 being reclaimed"


async def test_silence_is_said_and_a_new_stream_begins_anew() -> None:
    """No event for three seconds: stale, since when; a cut stream is taken up again, and its first document replaces all."""
    feed = Feed(three)
    async with board_over(feed) as url, tab(url) as found:
        await live_tab(found)
        await found.page.wait_for_selector("#state[data-state=stale]")
        assert "Nothing heard since " in await found.text("#notice")
        feed.hello = lambda: live(card("big"), card("new"), penstock="0.2.0")
        feed.cut()
        await found.page.wait_for_selector(".card .name:text('new')")
        await found.page.wait_for_selector("#state[data-state=live]")
        assert await found.page.locator(".card").count() == 2
        assert "0.2.0" in await found.text("#release")
        assert await found.page.is_hidden("#notice")


async def test_no_replicas_and_another_release() -> None:
    """An empty fleet says what to do; a document of another version asks for the page to be loaded again."""
    feed = Feed(live)
    async with board_over(feed) as url, tab(url) as found:
        await found.until_text("#no-cards", "No replicas are configured")
        feed.push(live(version=2))
        await found.until_text("#notice", "of another release")


async def test_placements_tell_why_and_open() -> None:
    """A line has its reason in words; opened by the keyboard it compares candidates, learns of its end, and stays while newer ones come."""
    first = line("r2", "big", unix_s=unix() + 5, reason="cost", formula="big [reserved] by cost: ttft 0.050s")
    feed = Feed(three)
    async with board_over(feed) as url, tab(url) as found:
        await live_tab(found)
        feed.push(live(whole=False, placements=(first,)))
        await found.until_text("#placements li", "cheapest that meets the objective")
        await found.page.focus("#placements summary")
        await found.page.keyboard.press("Enter")
        await found.until_text("#placements .formula", "big [reserved] by cost: ttft 0.050s")
        assert "big (chosen)" in await found.text("#placements table")
        feed.push(
            live(
                whole=False,
                placements=(line("r2", "big", unix_s=first.unix_s, reason="cost", outcome="completed", ttft_s=0.031),),
            )
        )
        await found.until_text("#placements li", "first token 31 ms")
        assert "done" in await found.text("#placements li .outcome")
        assert await found.page.is_visible("#placements .formula")
        feed.push(live(whole=False, placements=[line(f"n{i}", "small", unix_s=unix() + 10 + i) for i in range(25)]))
        await found.until_text("#placements-note", "held while you read: 20 or more newer")
        assert await found.page.is_visible("#placements .formula")
        await found.page.keyboard.press("Escape")
        assert await found.page.is_hidden("#placements .formula")
        await found.page.keyboard.press("/")
        feed.push(live(whole=False))
        await found.until("document.querySelectorAll('#placements li').length === 20")
        assert "small" in await found.text("#placements li .where")


async def test_keyboard_filters_and_sorts() -> None:
    """`/` goes to the filter, Esc empties it, the order is chosen without a mouse, and what has the focus can be seen."""
    async with board_over(Feed(three)) as url, tab(url) as found:
        await live_tab(found)
        names = "[...document.querySelectorAll('.card .name')].map(one => one.textContent).join()"
        assert await found.page.evaluate(names) == "big,other,small"
        await found.page.keyboard.press("/")
        await found.page.keyboard.type("spot")
        await found.until(f"{names} === 'small'")
        outline = await found.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"
        await found.page.keyboard.press("Escape")
        await found.until(f"{names} === 'big,other,small'")
        await found.page.keyboard.press("/")
        await found.page.keyboard.type("nothing like it")
        await found.until_text("#no-cards", "No replica fits the filter")
        await found.page.keyboard.press("Escape")
        await found.page.focus("#sort")
        await found.page.select_option("#sort", "price")
        await found.until(f"{names} === 'small,big,other'")
        await found.page.select_option("#sort", "fullness")
        await found.until(f"{names} === 'big,other,small'")


@pytest.mark.parametrize("width", [360, 768, 1024, 1440])
async def test_no_width_scrolls_sideways(width: int) -> None:
    """From a phone to a desk, with names as long as may be."""
    long = "a" * 63

    def hello() -> Live:
        return live(
            card(
                long,
                models=("organisation/model-with-a-rather-long-name-70b-instruct",),
                lifecycle="draining",
                why="w" * 200,
            ),
            card("big"),
            placements=(line("r1", long, reason="fallback", model="m" * 80),),
            queue=(QueueRow(model="m" * 60, service_tier="default", tenant="t" * 40, depth=1, tokens=1, oldest_s=1.0),),
        )

    async with board_over(Feed(hello)) as url, tab(url, size=(width, 800)) as found:
        await live_tab(found)
        await found.page.click("#placements summary")
        assert await found.page.evaluate("document.documentElement.scrollWidth") <= width


CONTRAST = """() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const rgb = color => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => { const [x, y, z] = [r, g, b].map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * x + .7152 * y + .0722 * z; };
  const ground = node => { for (; node; node = node.parentElement) { const at = rgb(getComputedStyle(node).backgroundColor); if (at[3] === 255) return at; } return [255, 255, 255, 255]; };
  const low = [];
  for (const node of document.querySelectorAll('body *')) {
    if (![...node.childNodes].some(one => one.nodeType === 3 && one.data.trim()) || !node.checkVisibility({ visibilityProperty: true }) || node.closest('.hidden, .skip, noscript, option')) continue;
    const [a, b] = [light(rgb(getComputedStyle(node).color)), light(ground(node))].sort((x, y) => y - x);
    const ratio = (a + .05) / (b + .05);
    if (ratio < 4.5) low.push(node.tagName + '.' + node.className + ' ' + node.textContent.slice(0, 30) + ' ' + ratio.toFixed(2));
  }
  return low;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_text_can_be_read_in_both_schemes(scheme: str) -> None:
    """Every text on the page has a contrast of at least 4.5 to what is behind it, whatever state its card is in."""
    states = ("ready", "draining", "reclaiming", "down", "suspect", "starting", "asleep")

    def hello() -> Live:
        cards = [
            card(state, lifecycle=state, why="because", cost_tier=("spot", "reserved", "on_demand")[i % 3])
            for i, state in enumerate(states)
        ]
        return live(
            card("big", held_blocks=500),
            *cards,
            draining=True,
            placements=(line("r1", "big", outcome="failed"), line("r2", "big")),
        )

    async with board_over(Feed(hello)) as url, tab(url, color_scheme=scheme) as found:
        await found.page.wait_for_selector(".card .name:text('big')")
        page = await found.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert (page == "rgb(246, 247, 247)") == (scheme == "light")
        assert await found.page.evaluate(CONTRAST) == []


async def test_reduced_motion_is_heeded() -> None:
    """Who asks for no movement gets none."""
    async with board_over(Feed(three)) as url, tab(url, reduced_motion="reduce") as found:
        await live_tab(found)
        assert await found.page.evaluate("document.getAnimations().length") == 0
        assert await found.page.evaluate("getComputedStyle(document.querySelector('.part')).transitionDuration") == "0s"


async def test_key_is_asked_for_kept_in_the_tab_and_sent() -> None:
    """Without the key: a form, and no data; a wrong one is told so; the right one opens the board and lives as long as the tab."""
    feed, seen = Feed(three), []

    def guarded(api: FastAPI) -> None:
        @api.middleware("http")
        async def check(request: Request, call_next: Any) -> Any:
            if request.url.path.startswith("/admin"):
                seen.append(request.headers.get("authorization"))
                if seen[-1] != f"Bearer {KEY}":
                    return Response(json.dumps({"error": {"message": "no"}}), status_code=401)
            return await call_next(request)

    async with board_over(feed, guarded) as url, tab(url) as found:
        found.expected = ["401"]
        await found.page.wait_for_selector("#key-form")
        assert await found.page.evaluate("document.activeElement.id") == "key"
        assert await found.page.is_hidden("#cards")
        await found.page.keyboard.type("wrong-wrong-wrong")
        await found.page.keyboard.press("Enter")
        await found.until_text("#key-words", "That is not the key")
        await found.page.keyboard.type(KEY)
        await found.page.keyboard.press("Enter")
        await live_tab(found)
        assert await found.page.is_hidden("#key-form")
        assert seen == [None, "Bearer wrong-wrong-wrong", f"Bearer {KEY}"]
        assert await found.page.evaluate("[localStorage.length, document.cookie]") == [0, ""]
        await found.page.reload()
        await live_tab(found)


def answering(feed: Feed, *, moves: bool = False, error: bool = False, endless: bool = False) -> "_Chat":
    return _Chat(feed, moves=moves, error=error, endless=endless)


class _Chat:
    """`POST /v1/chat/completions` as the gateway answers it."""

    def __init__(self, feed: Feed, *, moves: bool, error: bool, endless: bool) -> None:
        self._feed, self._moves, self._error, self._endless = feed, moves, error, endless
        self.asked: list[dict[str, object]] = []
        self.cut = asyncio.Event()
        self.begun, self.moved = asyncio.Event(), asyncio.Event()  # set once the page shows so much

    def __call__(self, api: FastAPI) -> None:
        @api.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            self.asked.append(await request.json())
            if self._error:
                said = {
                    "error": {
                        "message": "More comes than can be answered.",
                        "type": "server_error",
                        "param": None,
                        "code": "engine_overloaded",
                    }
                }
                return Response(
                    json.dumps(said),
                    status_code=503,
                    headers={"retry-after": "2", "retry-after-ms": "1500", "x-request-id": "c1"},
                )
            heads = {
                "x-request-id": "c1",
                "x-penstock-replica": "big",
                "x-penstock-cost-tier": "reserved",
                "x-penstock-queue-ms": "12",
            }
            return StreamingResponse(self._stream(), media_type="text/event-stream", headers=heads)

        @api.get("/admin/decisions/{request_id}")
        async def decision(request_id: str) -> dict[str, object]:
            score = {"usd": 0.0, "cached_tokens": 0}
            return {
                "choice": {
                    "replica": "big",
                    "cost_tier": "reserved",
                    "reason": "cost",
                    "considered": 3,
                    "score": score,
                },
                "earlier": 0,
            }

    async def _stream(self) -> AsyncIterator[bytes]:
        try:
            yield self._chunk({"role": "assistant", "content": "<b>one</b> "})
            while self._endless:
                yield self._chunk({"content": "and "})
                await asyncio.sleep(0.02)
            if self._moves:
                await self.begun.wait()
                self._feed.push(live(whole=False, placements=(line("c1", "small", cost_tier="spot"),)))
                await self.moved.wait()
            yield self._chunk({"content": "two"})
            yield self._chunk({}, finish="stop")
            yield b'data: {"choices": [], "usage": {"completion_tokens": 42}}\n\ndata: [DONE]\n\n'
        finally:
            self.cut.set()

    def _chunk(self, delta: dict[str, str], finish: str | None = None) -> bytes:
        return (
            b"data: "
            + json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}).encode()
            + b"\n\n"
        )


async def say(found: Tab, words: str) -> None:
    await found.page.fill("#say", words)
    await found.page.keyboard.press("Enter")


async def test_chat_streams_text_and_names_its_replica() -> None:
    """What a model says is text whatever it looks like; the answer says who gave it, how long it queued, how much it was, and why there."""
    feed = Feed(three)
    chat = answering(feed)
    async with board_over(feed, chat) as url, tab(url) as found:
        await live_tab(found)
        await say(found, "hello <i>there</i>")
        await found.until_text(".theirs .from", "42 tokens")
        assert await found.text(".theirs .text") == "<b>one</b> two"
        assert await found.text(".mine") == "hello <i>there</i>"
        head = await found.text(".theirs .from")
        assert "big" in head
        assert "reserved" in head
        assert "queued 12 ms" in head
        await found.until_text(
            ".theirs .why", "big: cheapest that meets the objective (paid for anyway: adds $0) · 3 had room"
        )
        await say(found, "again")
        await found.until(
            "document.querySelectorAll('.theirs').length === 2 && !document.querySelector('#send').hidden"
        )
        assert [len(asked["messages"]) for asked in chat.asked] == [1, 3]  # type: ignore[arg-type]
        assert chat.asked[0]["stream_options"] == {"include_usage": True}


async def test_tokens_of_an_answer_that_moved_are_told_apart() -> None:
    """From the second placement on, what comes is another replica's: marked by a line of another shape, and named."""
    feed = Feed(three)
    chat = answering(feed, moves=True)
    async with board_over(feed, chat) as url, tab(url) as found:
        await live_tab(found)
        await say(found, "hello")
        await found.until_text(".theirs .text", "<b>one</b>")
        chat.begun.set()
        await found.until_text(".theirs .from", "small")
        chat.moved.set()
        await found.until_text(".theirs .from", "42 tokens")
        assert await found.text(".theirs .mark-0 >> nth=0") == "<b>one</b>"
        assert await found.text(".theirs .text .mark-1") == "two"
        assert "then\nsmall" in (await found.text(".theirs .from")).replace("\n\n", "\n")
        styles = "[...document.querySelectorAll('.theirs .text span')].map(one => getComputedStyle(one).textDecorationStyle).join()"
        assert await found.page.evaluate(styles) == "solid,dashed"


async def test_chat_can_be_stopped_and_errors_are_told_kindly() -> None:
    """Stop hangs up; an error object is shown as a sentence with when to come back, and the question stays to be sent again."""
    feed = Feed(three)
    chat = answering(feed, endless=True)
    async with board_over(feed, chat) as url, tab(url) as found:
        await live_tab(found)
        await say(found, "hello")
        await found.until_text(".theirs .text", "and and")
        await found.page.click("#stop")
        await found.until_text(".theirs .from", "stopped, and so was the engine")
        await chat.cut.wait()
    async with board_over(feed, answering(feed, error=True)) as url, tab(url) as found:
        found.expected = ["503"]
        await live_tab(found)
        await say(found, "hello")
        await found.until_text(
            ".theirs .failure", "engine overloaded: More comes than can be answered. Try again in 1.5 s."
        )
        await found.until("document.querySelector('#say').value === 'hello'")


async def test_a_thousand_replicas_are_a_few_nodes() -> None:
    """Only cards in sight exist; whichever is scrolled to is there, and keeps changing."""
    fleet = Fleet(1000)
    feed = Feed(fleet.whole)
    async with board_over(feed) as url, tab(url) as found:
        await found.page.wait_for_selector(".card .name")
        assert await found.page.evaluate("document.querySelectorAll('*').length") < 2000
        last = "[...document.querySelectorAll('.card .name')].at(-1)?.textContent"
        await found.page.evaluate("document.querySelector('#fleet').scrollTop = 1e9")
        await found.until(f"{last} === 'l4-spot-999'")
        assert await found.page.evaluate("document.querySelectorAll('.card').length") < 60
        before = await found.card("l4-spot-999")
        for _ in range(5):
            feed.push(fleet.second())
        await found.until(
            f"[...document.querySelectorAll('.card')].at(-1).parts.rate.textContent !== {json.dumps(before['rate'])}"
        )
        await found.page.fill("#filter", "down")
        await found.until("document.querySelector('.card').dataset.lifecycle === 'down'")
