"""Debian's Chromium without a window, and a tab of it that notices what a user never should: errors, refused scripts, foreign requests."""

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.async_api import Browser, Page, async_playwright

from tests.support.patience import PATIENCE_S

_QUIET = (
    "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-quic",
)  # fmt: skip
PATIENCE_MS = 1000 * PATIENCE_S
WIDE = (1440, 1000)


@asynccontextmanager
async def browser() -> AsyncIterator[Browser]:
    """Fails the test where there is none."""
    found = shutil.which("chromium")
    if found is None:
        pytest.fail("no chromium on PATH; run `make engines`")
    async with async_playwright() as play:
        running = await play.chromium.launch(executable_path=found, args=list(_QUIET))
        try:
            yield running
        finally:
            await running.close()


class Tab:
    """A page at `url`; `problems` is what went wrong unseen so far."""

    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.problems: list[str] = []
        self.expected: list[str] = []  # words of problems that a test brings about itself
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: self.problems.append(f"error: {error}"))
        page.on("console", lambda said: said.type in {"error", "warning"} and self.problems.append(said.text))
        page.on("request", lambda request: self._check(request.url))

    def _check(self, asked: str) -> None:
        parts = urlsplit(asked)
        if parts.scheme != "data" and parts.netloc != urlsplit(self.url).netloc:
            self.problems.append(f"a request to {asked}")

    async def text(self, selector: str) -> str:
        return (await self.page.inner_text(selector)).strip()

    async def until(self, script: str, argument: Any = None) -> None:
        """A JavaScript expression, or a function of `argument`, is true. (Playwright's own waiting needs eval, which the page forbids.)"""
        try:
            async with asyncio.timeout(PATIENCE_MS / 1000):
                while not await self.page.evaluate(script, argument):
                    await asyncio.sleep(0.05)
        except TimeoutError:
            pytest.fail(
                f"never came true: {script} of {argument!r}; the page says:\n{await self.page.inner_text('body')}"
            )

    async def until_text(self, selector: str, words: str) -> None:
        """... of the first that fits holds these words."""
        await self.until(
            "([at, words]) => document.querySelector(at)?.innerText.includes(words) ?? false", [selector, words]
        )

    async def card(self, name: str) -> dict[str, str]:
        """What the card of this replica says, by the part's class."""
        script = """name => {
          const card = [...document.querySelectorAll('.card')].find(one => one.querySelector('.name').textContent === name);
          return Object.fromEntries(Object.entries(card.parts).map(([part, node]) => [part, node.innerText]));
        }"""
        found: dict[str, str] = await self.page.evaluate(script, name)
        return found

    async def until_card(self, name: str, part: str, words: str) -> None:
        script = """([name, part, words]) => [...document.querySelectorAll('.card')].some(
          one => one.querySelector('.name').textContent === name && one.parts[part].innerText.includes(words))"""
        await self.until(script, [name, part, words])

    def clean(self) -> None:
        """Raises where something went wrong that the test did not bring about."""
        found = [said for said in self.problems if not any(words in said for words in self.expected)]
        assert found == [], found


@asynccontextmanager
async def tab(url: str, *, size: tuple[int, int] = WIDE, **context: Any) -> AsyncIterator[Tab]:
    """Opened, and not yet waited for; at the end nothing may have gone wrong."""
    async with browser() as running:
        opened = await running.new_context(viewport={"width": size[0], "height": size[1]}, **context)
        found = Tab(await opened.new_page(), url)
        # A violation is reported to the document, whatever the console makes of it.
        script = "addEventListener('securitypolicyviolation', e => console.error('policy: ' + e.violatedDirective + ' ' + e.blockedURI))"
        await found.page.add_init_script(script)
        await found.page.goto(url)
        yield found
        found.clean()
