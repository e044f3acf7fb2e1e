"""The classes of holes that gateways have had (docs/api.md, "Security"), one test each; every test says what it would catch."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from config.load import redacted_yaml
from config.schema import Config, DataPlane
from config.tenants import Scope
from router.gateway import Gateway
from router.tenants.gate import OPEN_PATHS
from tests.support.asgi import Call, chat
from tests.support.fake_engine import FakeEngine, Script, document
from tests.support.gateways import Running, fake_config, gateway_over, listening
from tests.support.raw_http import ask, connected, get, head, post
from tests.support.tenants import asking, bearer, inline, key_for
from tests.support.virtual_time import run_virtual

CHAT = "/v1/chat/completions"
ACME, UMBRELLA = key_for("acme"), key_for("umbrella")
BEARER = f"authorization: Bearer {ACME}"
HOST = ("host", "127.0.0.1:8080")


def json_engine() -> FakeEngine:
    return FakeEngine(default=lambda: Script([document()], content_type="application/json"))


@pytest.fixture
def engine() -> FakeEngine:
    return json_engine()


@pytest.fixture(params=list(DataPlane))
async def gateway(engine: FakeEngine, request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    config = asking({"a": engine}, server={"data_plane": request.param, "header_timeout_s": 1.0})
    async with listening(config, {"a": engine}) as running:
        yield running


def in_gateway(config: Config, main: Any, engine: FakeEngine | None = None) -> None:
    async def run() -> None:
        async with gateway_over({"a": engine or json_engine()}, config) as running:
            await main(running)

    run_virtual(run())


def said(call: Call) -> tuple[int | None, str | None]:
    return call.status, call.json()["error"]["code"]


async def called(running: Running, path: str, *headers: tuple[str, str], body: object = None, method: str = "") -> Call:
    data = b"" if body is None else json.dumps(body).encode()
    wanted = method or ("GET" if body is None else "POST")
    return await Call(running.app, path, data, method=wanted, headers=[HOST, *headers]).run()


async def test_keys_by_either_header_and_nobody_without(gateway: Running) -> None:
    """A bearer's key and `x-api-key` are good; none, a wrong one, another scheme, or two are not. Catches: checks of one header only."""
    for line, status in (
        (BEARER, 200),
        (f"Authorization: bearer   {ACME}", 200),
        (f"X-Api-Key: {ACME}", 200),
        ("x: y", 401),
        ("authorization: Bearer", 401),
        ("authorization: Bearer ", 401),
        (f"authorization: Basic {ACME}", 401),
        (f"authorization: {ACME}", 401),
        (f"authorization: Bearer {ACME}x", 401),
        (f"authorization: Bearer {ACME[:-1]}", 401),
        (f"authorization: Bearer {ACME.upper()}", 401),
        (f"authorization: Bearer {ACME}, Bearer {ACME}", 401),
        (f"authorization: Bearer no\r\n{BEARER}", 401),
        (f"{BEARER}\r\nauthorization: Bearer no", 401),
        (f"authorization: Bearer no\r\nx-api-key: {ACME}", 401),
        (f"authorization: Bearer {'x' * 30_000}", 401),
        ("authorization: Bearer \xff\xfe", 401),
    ):
        answer = await ask(gateway.url, post(CHAT, chat(), *line.split("\r\n")))
        assert answer.status == status, line
        if status == 401:
            assert answer.error["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "bearer"
            assert answer.headers["x-request-id"]


async def test_nothing_is_read_for_strangers(gateway: Running, engine: FakeEngine) -> None:
    """401 comes before the body does, and what follows the head is never taken for a request. Catches: bodies buffered, or parsed, first."""
    smuggled = get("/v1/models", BEARER)
    async with connected(gateway.url) as client:
        await client.send(head("POST", CHAT, "content-length: 1000000", "x-request-id: mine"))
        answer = await client.answer()
        assert (answer.status, answer.headers["x-request-id"]) == (401, "mine")
        await client.send(smuggled)
        assert await client.until_closed() == b""
    assert gateway.gateway.bodies.held == 0
    assert engine.calls == []


async def test_folded_headers_are_no_keys(gateway: Running) -> None:
    """A header continued on the next line (obs-fold), or with a space before its colon, is refused. Catches: proxies that join differently."""
    for lines in (
        ("authorization: Bearer", f" {ACME}"),
        ("authorization:", f"\tBearer {ACME}"),
        (f"authorization : Bearer {ACME}",),
        (f"x-request-id: a\rauthorization: Bearer {ACME}",),
    ):
        answer = await ask(gateway.url, post(CHAT, chat(), *lines))
        assert answer.status in {400, 401}, lines


async def test_paths_are_judged_as_they_are_routed(gateway: Running) -> None:
    """However a path or Host is spelled, what needs a key is not had without one. Catches: BadHost (CVE-2026-48710), where the URL made of Host was judged."""
    for target in (
        "/v1/models",
        "/v1//models",
        "//v1/models",
        "/v1/models/",
        "/models",
        "/v1/models?x=/livez",
        "/v1/models#/livez",
        "/livez/../v1/models",
        "/v1/%6dodels",
        "/%76%31/models",
        "/v1/models/m",
        "http://localhost/v1/models",
        "/V1/models",
        "/v1/anything",
        "/metrics/../v1/models",
        "/docs/../v1/models",
        "/admin/../v1/models",
    ):
        for host in ("localhost", "localhost/livez?", "a/livez#", "x:80/readyz/"):
            answer = await ask(gateway.url, f"GET {target} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode("latin-1"))
            assert answer.status in {400, 401, 404}, (target, host)
            assert b"object" not in answer.body


def test_what_is_not_open_asks_for_a_key() -> None:
    """Of all routes, those alone answer without a key that are named; a new one is closed until somebody opens it. Catches: `--api-key` that leaves routes open (vLLM)."""

    async def main(running: Running) -> None:
        paths = [
            route.path.replace("{model:path}", "m")
            for route in _routes(running)
            if not route.path.startswith(("/admin", "/board"))  # router.admin_access has a rule for each
        ]
        assert "/v1/models" in paths
        for path in [*paths, "/nothing", "/v1/responses", "/redoc"]:
            call = await called(running, path)
            assert (call.status == 401) == (path not in OPEN_PATHS and path not in {"/metrics", "/metrics/vllm"}), path

    in_gateway(asking({"a": None}), main)


def _routes(running: Running) -> list[Any]:
    found = running.app._rest.routes
    return [route for route in found if hasattr(route, "path")]


def test_scopes_are_all_that_a_key_has() -> None:
    """A key for metrics asks no model, one for models sees no metrics; `auth.metrics` closes /metrics. Catches: any good key opens all."""
    metrics = key_for("ops", Scope.METRICS)

    async def main(running: Running) -> None:
        assert (await called(running, "/metrics", bearer(metrics))).status == 200
        assert said(await called(running, "/metrics")) == (401, "invalid_api_key")
        assert said(await called(running, "/metrics/vllm")) == (401, "invalid_api_key")
        assert said(await called(running, "/metrics", bearer(ACME))) == (403, "permission_denied")
        assert said(await called(running, CHAT, bearer(metrics), body=chat())) == (403, "permission_denied")
        assert (await called(running, "/livez")).status == 200
        assert (await called(running, CHAT, method="OPTIONS")).status == 405

    in_gateway(asking({"a": None}, inline("acme"), inline("ops", Scope.METRICS), auth={"metrics": True}), main)


def test_expired_early_and_revoked_keys() -> None:
    """A key is good from its beginning to its end only. Catches: expiry that is stored and never looked at."""

    async def main(running: Running) -> None:
        for tenant, says in (("past", "expired"), ("future", "not valid yet")):
            call = await called(running, CHAT, bearer(key_for(tenant)), body=chat())
            assert said(call) == (401, "invalid_api_key")
            assert says in call.json()["error"]["message"]
        assert running.metric("penstock_auth_failures_total", reason="expired") == 1
        assert running.metric("penstock_auth_failures_total", reason="not_yet") == 1

    past, future = inline("past", expires="2020-01-01T00:00:00Z"), inline("future", not_before="2999-01-01T00:00:00Z")
    in_gateway(asking({"a": None}, past, future), main)


def test_a_store_that_cannot_be_read_makes_no_key_wrong(tmp_path: Path) -> None:
    """While keys cannot be read, whoever shows one gets 503 and is asked to retry; never 401. Catches: LiteLLM's 401 for valid keys when its database is away."""
    path = tmp_path / "keys.jsonl"

    async def main(running: Running) -> None:
        call = await called(running, CHAT, bearer(ACME), body=chat())
        assert said(call) == (503, "auth_unavailable")
        assert call.header("retry-after") == "1"
        assert said(await called(running, CHAT, body=chat())) == (401, "invalid_api_key")
        record = inline("acme")
        path.write_text(json.dumps(record))
        await asyncio.sleep(3)
        assert (await called(running, CHAT, bearer(ACME), body=chat())).status == 200
        assert said(await called(running, CHAT, bearer(UMBRELLA), body=chat())) == (401, "invalid_api_key")
        path.write_text("half a rec")
        await asyncio.sleep(3)
        assert (await called(running, CHAT, bearer(ACME), body=chat())).status == 200
        assert said(await called(running, CHAT, bearer(UMBRELLA), body=chat())) == (503, "auth_unavailable")

    in_gateway(fake_config({"a": None}, auth={"keys_file": str(path)}), main)


def test_keys_are_seen_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """No key, good or wrong, reaches a log at any level, an answer, the engine, the metrics, the decisions or the printed configuration. Catches: CVE-2024-9606, Bifrost #4477."""
    engine, file = json_engine(), tmp_path / "decisions.jsonl"
    operator, secret = key_for("ops", Scope.ADMIN_READ), "secret-of-env-0123456789"
    wrong = "psk-a-wrong-key-that-is-some-other-service-s"
    keys = (ACME, operator, secret, wrong)
    config = asking(
        {"a": engine},
        inline("acme"),
        inline("ops", Scope.ADMIN_READ),
        auth={"secret_keys": f"env={secret}", "pepper": "a pepper that nobody sees"},
        decisions={"file": str(file)},
    )
    seen: list[bytes] = []

    async def main(running: Running) -> None:
        for key in keys:
            for header in (bearer(key), ("x-api-key", key)):
                for body in (chat(), chat(model="other"), {"model": 1}):
                    seen.append((await called(running, CHAT, header, body=body)).data)
            for path in ("/v1/models", "/admin/decisions", "/admin/replicas", "/metrics", f"/v1/{key}"):
                if key not in path:
                    seen.append((await called(running, path, bearer(key))).data)

    with caplog.at_level(logging.DEBUG):
        in_gateway(config, main, engine)
    seen += [json.dumps([call.headers, call.body.decode()]).encode() for call in engine.calls]
    seen += [caplog.text.encode(), file.read_bytes(), redacted_yaml(config).encode(), repr(config).encode()]
    assert len(engine.calls) >= 4
    for key in (*keys, "a pepper that nobody sees"):
        assert not any(key.encode() in text or key[-12:].encode() in text for text in seen), key


def test_credentials_stay_here() -> None:
    """What identifies a caller is not sent on: its key, cookies, addresses. Catches: gateways that forward a client's head."""
    engine = json_engine()
    headers = [
        ("x-api-key", ACME),
        ("cookie", "session=1"),
        ("x-forwarded-for", "10.0.0.9"),
        ("openai-organization", "o"),
    ]
    headers += [("x-vllm-priority", "-9"), ("x-data-parallel-rank", "3"), ("traceparent", "00-1")]

    async def main(running: Running) -> None:
        assert (await called(running, CHAT, *headers, body=chat())).status == 200

    in_gateway(asking({"a": engine}), main, engine)
    assert engine.calls[0].headers == {"traceparent": "00-1"}


def test_nobody_says_whose_he_is() -> None:
    """A tenant is its key's, whatever the body or head claims. Catches: gates that trust a field the caller sets (CVE-2026-47101)."""
    engine = json_engine()

    async def main(running: Running) -> None:
        fields = {"user": "umbrella", "tenant": "umbrella", "metadata": {"tenant": "umbrella"}}
        head_ = [("x-tenant", "umbrella"), ("x-penstock-tenant", "umbrella"), ("openai-project", "umbrella")]
        assert (await called(running, CHAT, bearer(ACME), *head_, body=chat(**fields))).status == 200
        ledger = running.gateway.decisions.ledger
        assert ledger is not None
        assert {record.asked("tenant") for record in ledger.recent(limit=8)} == {"acme"}

    in_gateway(asking({"a": engine}), main, engine)


@pytest.mark.parametrize(
    "name", ["api_base", "api_host", "api_url", "azure_endpoint", "base_url", "custom_host", "endpoint_url"]
)
def test_bodies_name_no_host(name: str) -> None:
    """An address in the body is refused by name and goes nowhere, for trusted tenants, too. Catches: CVE-2024-6587, where the provider's key went there."""
    engine = json_engine()

    async def main(running: Running) -> None:
        for key in (ACME, key_for("house", Scope.INFERENCE, Scope.TRUSTED)):
            call = await called(running, CHAT, bearer(key), body=chat(**{name: "http://169.254.169.254/"}))
            assert (call.status, call.json()["error"]["param"]) == (400, name)

    house = inline("house", Scope.INFERENCE, Scope.TRUSTED)
    in_gateway(asking({"a": engine}, inline("acme"), house), main, engine)
    assert engine.calls == []


def test_heads_name_no_host() -> None:
    """Headers by which other gateways are told where to send go nowhere and change nothing. Catches: Portkey's x-portkey-custom-host."""
    engine = json_engine()
    names = (
        "x-portkey-custom-host",
        "x-custom-host",
        "x-api-base",
        "x-upstream",
        "x-forwarded-host",
        "x-original-url",
        "x-rewrite-url",
    )

    async def main(running: Running) -> None:
        headers = [(name, "http://169.254.169.254/latest") for name in names]
        assert (await called(running, CHAT, bearer(ACME), *headers, body=chat())).status == 200

    in_gateway(asking({"a": engine}), main, engine)
    assert len(engine.calls) == 1
    assert engine.calls[0].headers == {}


def test_admin_is_for_admin_scopes() -> None:
    """A forged notice: who may ask models, or only look, cannot drain a replica; who may, can. Catches: notices that anybody may post."""
    reader, writer = key_for("eye", Scope.ADMIN_READ), key_for("hand", Scope.ADMIN_WRITE)

    async def main(running: Running) -> None:
        stranger = ("x-forwarded-for", "10.0.0.9")
        for path in ("/admin/replicas/a/notice", "/admin/replicas/a/drain"):
            body = {"kind": "reclaim", "deadline_unix": 4e9} if path.endswith("notice") else {}
            for key, status in ((ACME, 403), (reader, 403)):
                assert (await called(running, path, bearer(key), body=body)).status == status
            for headers in ([stranger], [stranger, bearer("wrong")], [stranger, ("x-admin", "true")]):
                assert (await called(running, path, *headers, body=body)).status in {401, 404}
        assert (await called(running, "/admin/replicas", bearer(ACME))).status == 403
        assert (await called(running, "/admin/replicas", bearer(reader))).status == 200
        assert (await called(running, "/admin/replicas/a/drain", stranger, bearer(writer), body={})).status == 200
        assert running.metric("penstock_auth_failures_total", reason="scope") == 5

    keys = inline("acme"), inline("eye", Scope.ADMIN_READ), inline("hand", Scope.ADMIN_WRITE)
    in_gateway(asking({"a": None}, *keys), main)


def test_admin_is_not_exposed() -> None:
    """On all interfaces and without an admin key, /admin is there for admin scopes only. Catches: default admin tokens (Portkey's), open management."""

    async def main(running: Running) -> None:
        for headers in ([], [bearer("test-token")], [bearer("")], [("x-admin-key", "admin")], [bearer("None")]):
            assert (await called(running, "/admin/replicas", *headers)).status == 404
        assert (await called(running, "/admin/replicas", bearer(ACME))).status == 403
        assert (await called(running, "/admin/replicas", bearer(key_for("eye", Scope.ADMIN_READ)))).status == 200

    config = asking({"a": None}, inline("acme"), inline("eye", Scope.ADMIN_READ), server={"host": "0.0.0.0"})
    in_gateway(config, main)


async def test_no_answer_s_head_is_the_client_s_to_write(gateway: Running) -> None:
    """Line breaks in what is echoed - ids, model names, parameters - never become headers. Catches: response splitting."""
    evil = "m\r\nset-cookie: x=1\r\n\r\nHTTP/1.1 200 OK"
    for body in (chat(model=evil), chat(service_tier=evil), {"model": "m", evil: 1, "messages": evil}):
        answer = await ask(gateway.url, post(CHAT, body, BEARER))
        assert answer.status in {400, 404}
        assert "set-cookie" not in answer.headers
        assert "\r" not in answer.body.decode()
    for given in ("a%0d%0aset-cookie: x", "a\x0bb", "a\x00b", "é", "a" * 200):
        raw = head("POST", CHAT, BEARER, "content-length: 2") + b"{}"
        sent = raw.replace(b"host: localhost", b"host: localhost\r\nx-request-id: " + given.encode("latin-1"))
        answer = await ask(gateway.url, sent)
        assert answer.status == 400
        assert "set-cookie" not in answer.headers


def salted(**tenant: Any) -> Config:
    config = asking(
        {"a": None},
        auth={"pepper": "a pepper that nobody knows"},
        tenants=[{"name": "acme", **tenant}, {"name": "umbrella", **tenant}],
    )
    replica = config.replicas[0].model_copy(update={"backend": "vllm"})
    return config.model_copy(update={"replicas": (replica,)})


def salts(config: Config) -> list[str | None]:
    """What the engine gets from acme, from acme again who sends its own, and from umbrella."""
    engine = json_engine()

    async def main(running: Running) -> None:
        for key, fields in ((ACME, {}), (ACME, {"cache_salt": "chosen"}), (UMBRELLA, {})):
            assert (await called(running, CHAT, bearer(key), body=chat(max_tokens=4, **fields))).status == 200

    in_gateway(config, main, engine)
    return [json.loads(call.body).get("cache_salt") for call in engine.calls]


def test_prefix_caches_can_be_kept_apart() -> None:
    """With `isolate_cache` each tenant's prompts carry a salt of its own, that no client chooses or guesses; else none does. Catches: reading others' prompts off the time to the first token."""
    one, again, other = salts(salted(isolate_cache=True))
    assert one == again != other
    assert one is not None
    assert len(one) == 32
    assert "chosen" not in one
    assert salts(salted()) == [None, None, None]
    assert salts(salted(isolate_cache=True))[0] == one  # after a restart, and in every other gateway


def test_our_own_belief_is_kept_apart_too() -> None:
    """Two tenants' equal prompts are one prefix to the router only where their engine's cache is one. Catches: requests placed by another tenant's cache."""

    def believed(config: Config) -> set[tuple[int, ...]]:
        found: set[tuple[int, ...]] = set()
        # As long as the gateway expects, so that it learns nothing that would cut the second prompt otherwise.
        engine = FakeEngine(default=lambda: Script([document(prompt=2500)], content_type="application/json"))

        async def main(running: Running) -> None:
            for key in (ACME, UMBRELLA):
                await called(running, CHAT, bearer(key), body=chat("word " * 2000, max_tokens=4))
            ledger = running.gateway.decisions.ledger
            assert ledger is not None
            found.update(record.prefix[:3] for record in ledger.recent(limit=8))

        in_gateway(config, main, engine)
        return found

    assert len(believed(salted())) == 1
    assert len(believed(salted(isolate_cache=True))) == 2


def test_risky_fields_are_for_trusted_keys() -> None:
    """Fields that reach into an engine are stripped unless the key, or its tenant, is trusted. Catches: strangers who choose chat templates or KV transfers."""
    engine = json_engine()
    risky = {"chat_template": "x", "kv_transfer_params": {"a": 1}, "priority": -5, "vllm_xargs": {}}

    async def main(running: Running) -> None:
        for key in (ACME, key_for("house", Scope.INFERENCE, Scope.TRUSTED), UMBRELLA):
            assert (await called(running, CHAT, bearer(key), body=chat(**risky))).status == 200

    keys = inline("acme"), inline("house", Scope.INFERENCE, Scope.TRUSTED), inline("umbrella")
    in_gateway(asking({"a": engine}, *keys, tenants=[{"name": "umbrella", "trusted": True}]), main, engine)
    got = [set(json.loads(call.body)) & risky.keys() for call in engine.calls]
    assert got == [
        set(),
        {"chat_template", "kv_transfer_params", "vllm_xargs"},
        {"chat_template", "kv_transfer_params", "vllm_xargs"},
    ]


def test_without_keys_everything_is_as_it_was() -> None:
    """No `auth`: nobody is asked, and whatever a client sends as its key is ignored. Catches: gates that close what was open."""

    async def main(running: Running) -> None:
        assert running.gateway.gate is None
        for headers in ([], [bearer("anything")]):
            call = await called(running, CHAT, *headers, body=chat())
            assert call.status == 200
            assert call.header("x-ratelimit-limit-requests") is None

    in_gateway(fake_config({"a": None}), main)


def test_guesses_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """All failures are counted, and at most ten a second are written. Catches: a disk filled by whoever guesses."""

    async def main(running: Running) -> None:
        for number in range(300):
            await called(running, CHAT, bearer(f"psk-guess-{number}"), body=chat())
        assert running.metric("penstock_auth_failures_total", reason="unknown") == 300

    with caplog.at_level(logging.WARNING, logger="penstock.audit"):
        in_gateway(asking({"a": None}), main)
    assert 0 < sum("reason=unknown" in record.getMessage() for record in caplog.records) <= 100  # a few seconds' worth


def test_a_gateway_starts_without_its_keys_only_as_a_worker(tmp_path: Path) -> None:
    """`KeyStore.load`, which `serve` calls first, refuses; a gateway that is built beside others starts, and answers 503."""
    from router.tenants.key_reading import BadStore

    gateway = Gateway(fake_config({"a": None}, auth={"keys_file": str(tmp_path / "none")}), version="test")
    assert gateway.keys is not None
    with pytest.raises(BadStore, match="No such file"):
        gateway.keys.load()
