"""`/admin/replicas` over a whole gateway in virtual time: who may, what is refused and how, and what an order does."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching.request import ReplicaId
from config.load import redacted_yaml
from config.schema import Config
from tests.support.asgi import Call, chat, post
from tests.support.fake_engine import FakeEngine, Script, whole_stream
from tests.support.gateways import Running, fake_config, gateway_over
from tests.support.virtual_time import run_virtual

KEY = "0123456789abcdef-of-the-admin"
HOST = ("host", "127.0.0.1:8080")
NAMES = ("h100-0", "a100-spot-0")
SPOT = "/a100-spot-0"
REPLICA = ReplicaId("a100-spot-0")


def unix(in_s: float) -> float:
    return datetime.now(UTC).timestamp() + in_s


@asynccontextmanager
async def gateway(engine: FakeEngine | None = None, **server: Any) -> AsyncIterator[Running]:
    engines = {name: engine or FakeEngine() for name in NAMES}
    async with gateway_over(engines, fake_config(engines, server=server)) as running:
        yield running


async def ask(
    running: Running, path: str = "", body: object = None, *, headers: Any = (HOST,), method: str = "", raw: bytes = b""
) -> Call:
    data = raw or (b"" if body is None else json.dumps(body).encode())
    wanted = method or ("GET" if body is None and not raw else "POST")
    return await Call(running.app, f"/admin/replicas{path}", data, method=wanted, headers=headers).run()


def error(call: Call) -> dict[str, Any]:
    found: dict[str, Any] = call.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def in_gateway(main: Any, **options: Any) -> None:
    async def run() -> None:
        async with gateway(**options) as running:
            await main(running)

    run_virtual(run())


# -- looking -------------------------------------------------------------------------------------------------------------


def test_replicas_are_listed_and_found():
    """With all that the contract names."""

    async def main(running: Running) -> None:
        listed = (await ask(running)).json()
        assert listed["object"] == "list"
        assert [row["name"] for row in listed["data"]] == list(NAMES)
        one = (await ask(running, "/h100-0")).json()
        assert one == listed["data"][0]
        assert one == {
            "name": "h100-0", "lifecycle": "ready", "detail": one["detail"], "requests": 0, "deadline_unix_s": None,
            "reason": None, "released": False, "models": ["m"], "gpu": "unknown", "cost_tier": "on_demand",
        }  # fmt: skip

    in_gateway(main)


@pytest.mark.parametrize(("path", "body"), [("", None), ("/drain", {}), ("/restore", {}), ("/notice", {})])
def test_unknown_name_is_told_the_near_ones(path: str, body: Any):
    """404, and which it may have been."""

    async def main(running: Running) -> None:
        call = await ask(running, "/a100-spot-1" + path, body)
        assert call.status == 404
        assert "did you mean `a100-spot-0`" in error(call)["message"]
        assert "there are `h100-0`, `a100-spot-0`" in error(await ask(running, "/zzz"))["message"].replace(
            "`a100-spot-0`, `h100-0`", "`h100-0`, `a100-spot-0`"
        )

    in_gateway(main)


# -- who may -------------------------------------------------------------------------------------------------------------


def bearer(key: str) -> tuple[str, str]:
    return ("authorization", f"Bearer {key}")


ELSEWHERE = ("host", "penstock.example.com")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((HOST, bearer(KEY)), 200),
        ((ELSEWHERE, bearer(KEY), ("x-forwarded-for", "10.0.0.9")), 200),
        ((ELSEWHERE, ("authorization", f"bearer {KEY}")), 200),
        ((HOST,), 401),
        ((HOST, bearer(KEY + "x")), 401),
        ((HOST, bearer("")), 401),
        ((HOST, ("authorization", KEY)), 401),
        ((HOST, ("authorization", f"Basic {KEY}")), 401),
    ],
)
@pytest.mark.parametrize("path", ["", SPOT + "/drain", "decisions"])
def test_with_a_key_whoever_has_it_may(headers: Any, status: int, path: str):
    """From anywhere; nobody else, also at the machine. Decisions are under the same rule."""

    async def main(running: Running) -> None:
        if path == "decisions":
            call = await Call(running.app, "/admin/decisions", method="GET", headers=headers).run()
        else:
            call = await ask(running, path, {} if path else None, headers=headers)
        assert call.status == status
        if status == 401:
            assert error(call)["code"] == "invalid_api_key"
            assert call.header("www-authenticate") == "Bearer"
            assert KEY not in call.data.decode()
            assert running.gateway.farewells.standing(REPLICA) is None

    in_gateway(main, admin_key=KEY, host="0.0.0.0")


@pytest.mark.parametrize(
    "headers",
    [
        (ELSEWHERE,),
        (HOST, ("x-forwarded-for", "10.0.0.9")),
        (HOST, ("origin", "https://evil.example")),
        (HOST, ("origin", "null")),
        (HOST, ("sec-fetch-site", "cross-site")),
    ],
)
def test_without_a_key_strangers_and_their_pages_are_refused(headers: Any):
    """A browser lets any page post to this machine: nothing is drained by one."""

    async def main(running: Running) -> None:
        assert (await ask(running, SPOT + "/drain", {}, headers=headers)).status == 404
        assert running.gateway.farewells.standing(REPLICA) is None

    in_gateway(main)


def test_own_pages_are_no_strangers():
    """The API's documentation calls it from the gateway's own address."""

    async def main(running: Running) -> None:
        headers = (HOST, ("origin", "http://127.0.0.1:8080"), ("sec-fetch-site", "same-origin"))
        assert (await ask(running, SPOT + "/drain", {}, headers=headers)).status == 200

    in_gateway(main)


def test_key_is_shown_nowhere(caplog: pytest.LogCaptureFixture):
    """Neither in the printed configuration, nor in a repr, nor in the log."""
    caplog.set_level(logging.DEBUG)
    config = Config.model_validate({"server": {"admin_key": KEY}})
    assert KEY not in redacted_yaml(config)
    assert KEY not in repr(config)

    async def main(running: Running) -> None:
        await ask(running, SPOT + "/drain", {}, headers=(HOST, bearer(KEY)))
        await ask(running, SPOT + "/drain", {}, headers=(HOST, bearer("wrong" + KEY)))

    in_gateway(main, admin_key=KEY)
    assert "asked by 127.0.0.1 by key" in caplog.text
    assert KEY not in caplog.text


# -- what is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "raw", "param", "says"),
    [
        ("/drain", '{"deadline": 5}', "deadline", "did you mean `deadline_s`?"),
        ("/drain", '{"deadline_s": -1}', "deadline_s", "from 0 to 86400"),
        ("/drain", '{"deadline_s": 1e999}', "deadline_s", "from 0 to 86400"),
        ("/drain", '{"deadline_s": "5"}', "deadline_s", "a number of seconds, or null, not a string"),
        ("/drain", '{"deadline_s": true}', "deadline_s", "not a boolean"),
        ("/drain", "[]", None, "object"),
        ("/drain", "{", None, ""),
        ("/drain", '{"deadline_s": NaN}', None, ""),
        ("/drain", '{"deadline_s": 1, "deadline_s": 2}', "deadline_s", "twice"),
        ("/restore", '{"why": 1}', "why", "known here: none"),
        ("/notice", '{"kind": "reclaim"}', "provider", "missing; give one of `aws`"),
        ("/notice", '{"provider": "aws"}', "kind", "`rebalance`, `reclaim`, `maintenance`"),
        ("/notice", '{"provider": "AWS", "kind": "reclaim"}', "provider", "`aws`"),
        ("/notice", '{"provider": "aws", "kind": "drain"}', "kind", "`reclaim`"),
        ("/notice", '{"provider": "aws", "kind": 5}', "kind", "not an integer"),
        (
            "/notice",
            '{"provider": "aws", "kind": "reclaim", "deadline_unix_s": 1766000000000}',
            "deadline_unix_s",
            "milli",
        ),
        ("/notice", '{"provider": "aws", "kind": "reclaim", "deadline_unix_s": -5}', "deadline_unix_s", "from 0"),
        ("/notice", '{"provider": "aws", "kind": "reclaim", "observed_unix_s": "now"}', "observed_unix_s", "a number"),
        ("/notice", '{"provider": "aws", "kind": "reclaim", "id": 7}', "id", "a string"),
        ("/notice", '{"provider": "aws", "kind": "reclaim", "id": ""}', "id", "1 to 128"),
        ("/notice", '{"provider": "aws", "kind": "reclaim", "id": "a\\nb"}', "id", "printable"),
    ],
)
def test_mistakes_are_told_and_change_nothing(path: str, raw: str, param: str | None, says: str):
    """400, which field, and what to send instead."""

    async def main(running: Running) -> None:
        call = await ask(running, SPOT + path, raw=raw.encode())
        found = error(call)
        assert (call.status, found["param"]) == (400, param)
        assert says in found["message"]
        assert running.gateway.farewells.standing(REPLICA) is None

    in_gateway(main)


def test_large_and_endless_bodies_are_refused():
    """Before they are kept, and before anybody waits for their end for ever."""

    async def main(running: Running) -> None:
        assert (await ask(running, SPOT + "/drain", raw=b" " * 20_000)).status == 413
        path = f"/admin/replicas{SPOT}/drain"
        slow = Call(running.app, path, body_parts=[b"{"], endless=True, headers=(HOST,))
        await slow.run()
        assert slow.status == 408
        assert (await ask(running, SPOT + "/drain", method="PUT")).status == 405

    in_gateway(main, body_timeout_s=3.0)


@settings(max_examples=60, deadline=None)
@given(
    fields=st.dictionaries(
        st.sampled_from(["provider", "kind", "deadline_unix_s", "observed_unix_s", "id", "deadline_s", "x"]),
        st.one_of(
            st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=200),
            st.sampled_from(["aws", "reclaim", "rebalance", "maintenance"]), st.just([]),
        ),
    ),
    path=st.sampled_from(["drain", "notice", "restore"]),
)  # fmt: skip
def test_whatever_is_said_is_understood_or_refused(fields: Any, path: str):
    """No body is an error of ours."""

    async def main(running: Running) -> None:
        try:
            raw = json.dumps(fields).encode()
        except ValueError:
            return
        assert (await ask(running, f"{SPOT}/{path}", raw=raw)).status in {200, 400, 409}

    in_gateway(main)


# -- what is done --------------------------------------------------------------------------------------------------------


def test_drain_is_idempotent_and_restore_ends_it():
    """Nothing new is sent there; told twice it is the same; a second restore has nothing to end."""

    async def main(running: Running) -> None:
        for _ in range(2):
            drained = (await ask(running, SPOT + "/drain", {})).json()
            assert (drained["lifecycle"], drained["reason"], drained["released"]) == ("draining", "drain", True)
            assert drained["deadline_unix_s"] is None
        for _ in range(3):
            call = await post(running.app, "/v1/chat/completions", chat(stream=True)).run()
            assert call.header("x-penstock-replica") == "h100-0"
        restored = (await ask(running, SPOT + "/restore", {})).json()
        assert (restored["reason"], restored["released"]) == (None, False)
        await asyncio.sleep(0.01)
        assert (await ask(running, SPOT)).json()["lifecycle"] == "ready"
        call = await ask(running, SPOT + "/restore", {})
        assert (call.status, error(call)["code"]) == (409, "conflict")

    in_gateway(main)


def test_sooner_deadline_wins():
    """Of two drains, and of a drain and a notice."""

    async def main(running: Running) -> None:
        first = (await ask(running, SPOT + "/drain", {"deadline_s": 60})).json()["deadline_unix_s"]
        assert first == pytest.approx(unix(60), abs=5)
        assert (await ask(running, SPOT + "/drain", {"deadline_s": 90})).json()["deadline_unix_s"] == first
        assert (await ask(running, SPOT + "/drain", {})).json()["deadline_unix_s"] == first
        body = {"provider": "gcp", "kind": "reclaim", "deadline_unix_s": unix(20)}
        sooner = (await ask(running, SPOT + "/notice", body)).json()
        assert (sooner["lifecycle"], sooner["reason"]) == ("draining", "drain")
        assert sooner["deadline_unix_s"] == pytest.approx(unix(20), abs=5)

    in_gateway(main)


@pytest.mark.parametrize(
    ("deadline", "left_s", "warns"),
    [(None, 30.0, False), (90.0, 90.0, False), (7200.0, 3600.0, True), (-40.0, 0.0, True)],
)
def test_deadline_of_a_reclaim(deadline: float | None, left_s: float, warns: bool, caplog: pytest.LogCaptureFixture):
    """None: the shortest any cloud gives; what another clock must have said is clamped, and the log says so."""

    async def main(running: Running) -> None:
        body = {"provider": "aws", "kind": "reclaim", "deadline_unix_s": None if deadline is None else unix(deadline)}
        told = (await ask(running, SPOT + "/notice", body)).json()
        assert told["lifecycle"] == "reclaiming"
        assert told["deadline_unix_s"] == pytest.approx(unix(left_s), abs=5)
        standing = running.gateway.farewells.standing(REPLICA)
        assert standing is not None
        assert standing.deadline_s == pytest.approx(asyncio.get_running_loop().time() + left_s, abs=5)

    in_gateway(main)
    assert ("its deadline is" in caplog.text) == warns


def test_repeats_of_a_notice_are_one_notice(caplog: pytest.LogCaptureFixture):
    """An agent tells it every few seconds: counted and logged once; another event counts again."""
    caplog.set_level(logging.INFO)

    async def main(running: Running) -> None:
        body = {
            "provider": "aws",
            "kind": "reclaim",
            "deadline_unix_s": unix(100),
            "observed_unix_s": unix(0),
            "id": "i-1",
        }
        for _ in range(5):
            assert (await ask(running, SPOT + "/notice", body)).status == 200
        labels = {"replica": "a100-spot-0", "provider": "aws", "kind": "reclaim"}
        assert running.metric("penstock_spot_notices_total", **labels) == 1
        await ask(running, SPOT + "/notice", {**body, "id": "i-2"})
        assert running.metric("penstock_spot_notices_total", **labels) == 2

    in_gateway(main)
    lines = [record.getMessage() for record in caplog.records if record.name == "penstock.admin"]
    assert len(lines) == 2
    assert lines[0].startswith("reclaim of replica a100-spot-0 (aws 'i-1'), in ")
    assert lines[0].endswith("asked by 127.0.0.1 at the machine")


def test_hint_keeps_it_ready_and_maintenance_drains():
    """Each kind of notice does its own."""

    async def main(running: Running) -> None:
        hint = {"provider": "aws", "kind": "rebalance", "deadline_unix_s": unix(100)}
        told = (await ask(running, SPOT + "/notice", hint)).json()
        assert (told["lifecycle"], told["reason"], told["deadline_unix_s"]) == ("ready", "rebalance", None)
        told = (await ask(running, SPOT + "/notice", {"provider": "azure", "kind": "maintenance"})).json()
        assert (told["lifecycle"], told["reason"], told["deadline_unix_s"]) == ("draining", "maintenance", None)

    in_gateway(main)


def test_released_when_the_last_stream_has_ended():
    """It runs on, the document counts it, and the machine may go when it is whole."""
    engine = FakeEngine(default=lambda: Script(whole_stream(tokens=20), gap_s=0.5))

    async def main(running: Running) -> None:
        await ask(running, "/h100-0/drain", {})
        call = post(running.app, "/v1/chat/completions", chat(stream=True))
        serving = asyncio.get_running_loop().create_task(call.run())
        await call.until_chunks(2)
        told = (await ask(running, SPOT + "/drain", {})).json()
        assert (told["requests"], told["released"], told["lifecycle"]) == (1, False, "draining")
        await serving
        assert call.events()[-1] == "[DONE]"
        await asyncio.sleep(0.2)
        told = (await ask(running, SPOT)).json()
        assert (told["requests"], told["released"]) == (0, True)
        assert running.metric("penstock_replica_drains_total", replica="a100-spot-0", outcome="released") == 1

    in_gateway(main, engine=engine)


def test_reload_keeps_a_running_notice():
    """A new price of the replica, and other replicas, change nothing of it; it goes with the replica's name."""

    async def main(running: Running) -> None:
        body = {"provider": "aws", "kind": "reclaim", "deadline_unix_s": unix(100)}
        before = (await ask(running, SPOT + "/notice", body)).json()
        told = running.gateway.config.model_dump(mode="json")
        told["replicas"][1]["cost"]["usd_per_hour"] = 3.0
        running.gateway.reload(Config.model_validate(told))
        await asyncio.sleep(3)
        after = (await ask(running, SPOT)).json()
        assert {**after, "detail": ""} == {**before, "detail": ""}
        told["replicas"].pop(1)
        running.gateway.reload(Config.model_validate(told))
        assert (await ask(running, SPOT)).status == 404

    in_gateway(main)
