"""When the issuer is asked for its keys: in the background, once for an unknown key, never without end; what was read stays."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from config.oidc import AdminOidc
from router.oidc.logins import Logins, Unavailable
from router.oidc.tokens import BadToken, Why
from tests.support.issuer import KeyPair
from tests.support.virtual_time import run_virtual

ISSUER = "https://login.example.com/realms/ops"
KEYS = "https://login.example.com/keys"
OLD, NEW, FORGED = KeyPair("old"), KeyPair("new"), KeyPair("forged")


class Served:
    """What the issuer's web server says; a few milliseconds away."""

    def __init__(self, *pairs: KeyPair) -> None:
        self.pairs = list(pairs)
        self.asked: list[str] = []
        self.about: Any = {"issuer": ISSUER, "jwks_uri": KEYS}
        self.fails: Callable[[], httpx.Response] | None = None
        self.takes_s = 0.01

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(self.takes_s)
        self.asked.append(str(request.url))
        if self.fails is not None:
            return self.fails()
        if request.url.path.endswith("openid-configuration"):
            return httpx.Response(200, json=self.about)
        return httpx.Response(200, json={"keys": [pair.jwk for pair in self.pairs]})


@asynccontextmanager
async def logins(served: Served, **changes: Any) -> AsyncIterator[Logins]:
    said = {"issuer": ISSUER, "audience": ["penstock"], "write": ["sre"], **changes}
    found = Logins(AdminOidc.model_validate(said), lambda: httpx.AsyncClient(transport=httpx.MockTransport(served)))
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(found.run())
        await asyncio.sleep(1)
        yield found
        running.cancel()


async def name(found: Logins, pair: KeyPair) -> str | None:
    bearer = await found.bearer(pair.token(ISSUER))
    return None if bearer is None else bearer.name


async def refused(found: Logins, pair: KeyPair) -> Why:
    with pytest.raises(BadToken) as caught:
        await found.bearer(pair.token(ISSUER))
    return caught.value.why


def test_keys_are_found_where_the_issuer_says():
    """At its well-known place, which must be of that issuer; or where the configuration says, and then nowhere else."""

    async def main() -> None:
        served = Served(OLD)
        async with logins(served) as found:
            assert await name(found, OLD) == "alice"
            assert await found.bearer("no-token-of-this-kind") is None
            assert served.asked == [f"{ISSUER}/.well-known/openid-configuration", KEYS]
        served = Served(OLD)
        async with logins(served, jwks_url="https://login.example.com/other") as found:
            assert await name(found, OLD) == "alice"
            assert served.asked == ["https://login.example.com/other"]

    run_virtual(main())


@pytest.mark.parametrize(
    "about",
    [
        {"issuer": ISSUER + "/", "jwks_uri": KEYS},
        {"issuer": ISSUER},
        {"issuer": ISSUER, "jwks_uri": "http://login.example.com/keys"},
        {"issuer": ISSUER, "jwks_uri": "file:///etc/passwd"},
        ["issuer"],
    ],
)
def test_a_place_that_cannot_be_trusted_is_not_asked(about: object):
    """Another issuer's document, or keys that anybody on the way could change: nobody is let in, and nobody is called wrong."""

    async def main() -> None:
        served = Served(OLD)
        served.about = about
        async with logins(served) as found:
            with pytest.raises(Unavailable):
                await name(found, OLD)
            assert all(url.endswith("openid-configuration") for url in served.asked)

    run_virtual(main())


def test_a_new_key_is_asked_for_once():
    """The issuer has changed its key: the first token with it waits for one reading, as do others; no wrong token causes another for a while."""

    async def main() -> None:
        served = Served(OLD)
        async with logins(served, jwks_url=KEYS) as found:
            await asyncio.sleep(40)
            served.pairs = [OLD, NEW]
            assert served.asked == [KEYS]
            assert await asyncio.gather(*(name(found, NEW) for _ in range(20))) == ["alice"] * 20
            assert len(served.asked) == 2
            for _ in range(50):
                assert await refused(found, FORGED) is Why.UNKNOWN_KEY
            assert len(served.asked) == 2
            await asyncio.sleep(31)
            assert await refused(found, FORGED) is Why.UNKNOWN_KEY
            assert len(served.asked) == 3

    run_virtual(main())


def test_who_comes_while_the_keys_are_read_waits_too():
    """A slow issuer: a token that comes after the one that has set the reading off, or during the usual one, waits for it, and causes no other."""

    async def main() -> None:
        served = Served(OLD)
        async with logins(served, jwks_url=KEYS, refresh_s=60) as found, asyncio.TaskGroup() as tasks:
            await asyncio.sleep(30)
            served.takes_s, served.pairs = 0.5, [OLD, NEW]
            first = tasks.create_task(name(found, NEW))
            await asyncio.sleep(0.1)
            wrong = tasks.create_task(refused(found, FORGED))
            assert await name(found, NEW) == "alice"
            assert await first == "alice"
            assert await wrong is Why.UNKNOWN_KEY
            assert len(served.asked) == 2
            later = KeyPair("later")
            await asyncio.sleep(60.2)  # the usual reading is under way
            served.pairs = [later]
            assert await name(found, later) == "alice"
            assert len(served.asked) == 3

    run_virtual(main())


def test_a_reading_that_began_too_early_is_followed_by_one_more():
    """Under way when the issuer changed its keys: what it brings has not the new one, so they are asked for again, once."""

    async def main() -> None:
        served = Served(OLD)
        async with logins(served, jwks_url=KEYS, refresh_s=60) as found:
            served.takes_s = 0.5

            def still_the_old() -> httpx.Response:
                served.fails = None
                return httpx.Response(200, json={"keys": [OLD.jwk]})

            served.fails = still_the_old
            served.pairs = [NEW]
            await asyncio.sleep(59.2)
            assert await name(found, NEW) == "alice"
            assert len(served.asked) == 3

    run_virtual(main())


def test_keys_are_read_again_and_taken_away():
    """A key that the issuer does not name any more opens nothing after the next reading."""

    async def main() -> None:
        served = Served(OLD, NEW)
        async with logins(served, jwks_url=KEYS, refresh_s=60) as found:
            assert await name(found, OLD) == "alice"
            served.pairs = [NEW]
            await asyncio.sleep(61)
            assert await refused(found, OLD) is Why.UNKNOWN_KEY
            assert await name(found, NEW) == "alice"

    run_virtual(main())


def _too_large() -> httpx.Response:
    return httpx.Response(200, content=b" " * 600_000 + b"{}")


def _moved() -> httpx.Response:
    return httpx.Response(302, headers={"location": "https://evil.example/keys"})


def _broken() -> httpx.Response:
    raise httpx.ConnectError("nobody there")


@pytest.mark.parametrize(
    "fails",
    [
        _broken, _too_large, _moved, lambda: httpx.Response(500), lambda: httpx.Response(200, content=b"<html>"),
        lambda: httpx.Response(200, content=json.dumps({"keys": []}).encode()),
        lambda: httpx.Response(200, json={"keys": [{"kty": ["RSA"]}]}),
        lambda: httpx.Response(200, content=b'{"keys":' + b"[" * 200_000 + b"]" * 200_000 + b"}"),
    ],
)  # fmt: skip
def test_what_was_read_stays(fails: Callable[[], httpx.Response], caplog: pytest.LogCaptureFixture):
    """The issuer is away, or says rubbish, for a while: who has a good token comes in; another may be good and is asked to come again. Said once."""

    async def main() -> None:
        served = Served(OLD)
        async with logins(served, jwks_url=KEYS, refresh_s=60) as found:
            served.fails = fails
            served.pairs = [OLD, NEW]
            await asyncio.sleep(200)
            assert await name(found, OLD) == "alice"
            with pytest.raises(Unavailable):
                await name(found, NEW)
            assert len(served.asked) < 12
            assert not any("evil" in url for url in served.asked)
            served.fails = None
            await asyncio.sleep(61)
            assert await name(found, NEW) == "alice"

    with caplog.at_level(logging.ERROR, logger="penstock.oidc"):
        run_virtual(main())
    assert [record.getMessage().count("those that were read stay") for record in caplog.records] == [1]


def test_before_the_first_reading_nobody_is_wrong():
    """A token then may be good: come again. It is asked again soon."""

    async def main() -> None:
        served = Served(OLD)
        served.fails = lambda: httpx.Response(503)
        async with logins(served, jwks_url=KEYS) as found:
            with pytest.raises(Unavailable):
                await name(found, OLD)
            served.fails = None
            await asyncio.sleep(3)
            assert await name(found, OLD) == "alice"

    run_virtual(main())
