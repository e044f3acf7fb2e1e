"""`/admin` by a token of the login: an issuer of our own that serves its keys, and a gateway on a socket."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from config.tenants import Scope
from tests.support.fake_engine import FakeEngine
from tests.support.gateways import Running, fake_config, listening
from tests.support.issuer import Issuer, KeyPair
from tests.support.patience import PATIENCE_S
from tests.support.raw_http import Answer, ask, get, post
from tests.support.tenants import inline, key_for

ADMIN_KEY = "0123456789abcdef-of-the-admin"


@asynccontextmanager
async def gateway(*pairs: KeyPair, **server: Any) -> AsyncIterator[tuple[Running, Issuer]]:
    issuer, engines = Issuer(*pairs), {"a": FakeEngine()}
    auth, issuer.status = server.pop("auth", {}), server.pop("status", 200)
    async with issuer.server:
        oidc = {"issuer": issuer.url, "audience": ["penstock"], "read": ["ops"], "write": ["sre"]}
        config = fake_config(engines, server={"admin_oidc": oidc, **server}, auth=auth)
        async with listening(config, engines) as running:
            yield running, issuer


async def look(running: Running, *headers: str) -> Answer:
    return await ask(running.url, get("/admin/replicas", *headers))


def bearer(token: str) -> str:
    return f"authorization: Bearer {token}"


async def until_let_in(running: Running, token: str) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while (await look(running, bearer(token))).status == 503:
            await asyncio.sleep(0.05)


async def test_who_may_look_and_who_may_act(caplog: pytest.LogCaptureFixture):
    """Without a token 401, here too; `read` GETs and no more; `write` drains, and the log says who; another token is refused with a reason."""
    pair = KeyPair("k1")
    async with gateway(pair) as (running, issuer):
        sre, ops, others = (pair.token(issuer.url, sub=who, groups=[who]) for who in ("sre", "ops", "others"))
        await until_let_in(running, sre)
        assert (await look(running)).status == 401
        assert (await look(running, bearer("psk-unknown"))).status == 401
        assert (await look(running, bearer(ops))).status == 200
        assert (await look(running, bearer(others))).status == 403
        drain = "/admin/replicas/a/drain"
        refused = await ask(running.url, post(drain, {}, bearer(ops)))
        assert (refused.status, refused.json()["error"]["code"]) == (403, "permission_denied")
        assert "server.admin_oidc.write" in refused.json()["error"]["message"]
        with caplog.at_level(logging.INFO):
            assert (await ask(running.url, post(drain, {}, bearer(sre)))).status == 200
        assert "as sre" in caplog.text
        late = await look(running, bearer(pair.token(issuer.url, exp=1)))
        assert (late.status, "it has expired" in late.json()["error"]["message"]) == (401, True)
        assert late.headers["www-authenticate"] == 'bearer error="invalid_token"'  # as the client reads it
        assert sre not in caplog.text
        assert (await ask(running.url, get("/v1/models", bearer(sre)))).status == 200  # nobody is asked there


async def test_a_key_that_is_new_is_let_in():
    """The issuer signs with another key from now on: its first token is good."""
    first, second = KeyPair("k1"), KeyPair("k2")
    async with gateway(first) as (running, issuer):
        await until_let_in(running, first.token(issuer.url))
        issuer.pairs = [second]
        assert (await look(running, bearer(second.token(issuer.url)))).status == 200
        assert (await look(running, bearer(first.token(issuer.url)))).status == 401


async def test_other_keys_are_what_they_were():
    """`server.admin_key` and tenants' keys with an admin scope open beside tokens; a token opens nothing of `/v1`."""
    pair = KeyPair("k1")
    auth = {"keys": [inline("ops", Scope.ADMIN_READ), inline("acme")]}
    async with gateway(pair, admin_key=ADMIN_KEY, auth=auth) as (running, issuer):
        token = pair.token(issuer.url)
        await until_let_in(running, token)
        assert (await look(running, bearer(token))).status == 200
        assert (await look(running, bearer(ADMIN_KEY))).status == 200
        assert (await look(running, bearer(key_for("ops", Scope.ADMIN_READ)))).status == 200
        assert (await look(running, bearer(key_for("acme")))).status == 403
        assert (await look(running, bearer("eyJhbGciOiJub25lIn0.e30."))).status == 401
        assert (await ask(running.url, get("/v1/models", bearer(token)))).status == 401
        assert (await ask(running.url, get("/v1/models", bearer(key_for("acme"))))).status == 200


async def test_without_its_issuer_a_gateway_serves():
    """Nobody there from the start: tokens are answered 503, the admin's key opens, and so does `/v1`."""
    pair = KeyPair("k1")
    async with gateway(pair, admin_key=ADMIN_KEY, status=500) as (running, issuer):
        answer = await look(running, bearer(pair.token(issuer.url)))
        assert (answer.status, answer.json()["error"]["code"]) == (503, "auth_unavailable")
        assert (await look(running, bearer(ADMIN_KEY))).status == 200
        assert (await ask(running.url, get("/v1/models"))).status == 200
