"""The ledger of a gateway that serves: over HTTP, in its metrics, in its file, and as `penstock explain` and `replay` show it."""

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from config.load import embedded_default
from config.schema import Config
from router.cli import build_app
from tests.support.conditions import until, until_at_rest
from tests.support.gateways import Running, listening


def config(**decisions: Any) -> Config:
    """The embedded default, twenty times as fast."""
    told = embedded_default().model_dump()
    for replica in told["replicas"]:
        replica["simulated"]["speed"] = 20.0
    return Config.model_validate({**told, "decisions": decisions})


async def ask(http: httpx.AsyncClient, words: str = "Hello", **fields: Any) -> str:
    """One streamed answer; its request id."""
    body = {"model": "sim-8b", "stream": True, "max_tokens": 20, "messages": [{"role": "user", "content": words}]}
    answer = await http.post("/v1/chat/completions", json={**body, **fields})
    assert answer.status_code == 200
    return answer.headers["x-request-id"]


async def cli(*args: str | Path) -> Result:
    return await asyncio.to_thread(CliRunner().invoke, build_app(), [str(arg) for arg in args])


def client(running: Running) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=running.url, trust_env=False)


async def test_placements_are_listed_newest_first_and_found():
    """By request, replica and model; each with its candidates and scores, and what came of it."""
    async with listening(config()) as running, client(running) as http:
        first, second = await ask(http), await ask(http, "Hello again")
        await until_at_rest(running)
        listed = (await http.get("/admin/decisions")).json()["data"]
        assert [row["request_id"] for row in listed] == [second, first]
        assert [(row["ended"]["outcome"], row["ended"]["output_tokens"]) for row in listed] == [("completed", 20)] * 2
        assert all(offer["score"] for row in listed for offer in row["offers"])
        one = (await http.get(f"/admin/decisions/{first}")).json()
        assert (one["request_id"], one["earlier"], one["choice"]["replica"]) == (first, 0, "h100-reserved")
        for query, count in (("limit=1", 1), (f"request_id={first}", 1), ("replica=a100-spot", 0), ("model=sim-8b", 2)):
            assert len((await http.get(f"/admin/decisions?{query}")).json()["data"]) == count, query


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/admin/decisions/req-none", 404, "among the last 0 kept"),
        ("/admin/decisions?limit=0", 400, "whole number from 1 to 1000"),
        ("/admin/decisions?limit=many", 400, "whole number from 1 to 1000"),
        ("/admin/none", 404, "There is no GET"),
    ],
)
async def test_what_there_is_not_is_said_as_everywhere(path: str, status: int, said: str):
    """In the API's own error shape, with what to do."""
    async with listening(config()) as running, client(running) as http:
        answer = await http.get(path)
        assert (answer.status_code, said in answer.json()["error"]["message"]) == (status, True)


@pytest.mark.parametrize(
    "headers",
    [{"host": "evil.example"}, {"x-forwarded-for": "203.0.113.9"}, {"forwarded": "for=203.0.113.9"}],
)
async def test_only_who_sits_at_the_machine_is_answered(headers: dict[str, str]):
    """A page that resolves its own name to 127.0.0.1, and a proxy that says for whom it asks, are strangers."""
    async with listening(config()) as running, client(running) as http:
        answer = await http.get("/admin/decisions", headers=headers)
        assert answer.status_code == 404
        assert "only who asks this machine by its loopback address" in answer.json()["error"]["message"]


async def test_nobody_is_answered_where_strangers_can_reach_it():
    """A gateway that listens on all interfaces has no admin, whoever asks; it says why and what to do."""
    told = config().model_dump()
    told["server"]["host"] = "0.0.0.0"
    async with listening(Config.model_validate(told)) as running, client(running) as http:
        answer = await http.get("/admin/decisions")
        assert answer.status_code == 404
        assert (
            "listens on 0.0.0.0; set server.admin_key, or server.host to 127.0.0.1" in answer.json()["error"]["message"]
        )


async def test_it_can_be_switched_off():
    """`ring: 0` without a file: nothing is recorded, and admin says so."""
    async with listening(config(ring=0)) as running, client(running) as http:
        await ask(http)
        assert running.gateway.decisions.ledger is None
        assert "decisions.ring is 0" in (await http.get("/admin/decisions")).json()["error"]["message"]


async def test_errors_of_predictions_are_measured():
    """Per replica and signal, with the weight that each has earned."""
    async with listening(config()) as running, client(running) as http:
        await ask(http)
        labels = {"replica": "h100-reserved", "signal": "tpot"}
        await until(lambda: running.metric("penstock_prediction_error_ratio_count", **labels) == 1)
        assert running.metric("penstock_signal_weight_ratio", **labels) == 1
        for source in ("learned", "baseline"):
            assert 0 <= running.metric("penstock_signal_error_ratio", **labels, source=source) < 1


async def test_a_user_explains_and_replays(tmp_path: Path):
    """The id of an answer's header is enough; the file replays, and names neither words nor people."""
    path = tmp_path / "decisions.jsonl"
    async with listening(config(file=str(path))) as running, client(running) as http:
        secret = "a very private matter of nobody else " * 200
        ids = [await ask(http, secret, user="alice@example.com") for _ in range(3)]
        await until_at_rest(running)
        live = await cli("explain", ids[0], "--url", running.url)
        last = await cli("explain", "last", "--url", running.url)
        unknown = await cli("explain", "req-none", "--url", running.url)
    for result, name in ((live, ids[0]), (last, ids[2])):
        assert result.exit_code == 0, result.output
        assert f"{name} went to h100-reserved: " in result.stdout
    assert (unknown.exit_code, "No placement of this request" in unknown.stderr) == (1, True)
    assert "private" not in path.read_text()
    assert "alice" not in path.read_text()
    assert running.metric("penstock_decision_records_total", outcome="written") == 3
    assert (await cli("explain", ids[1], "--file", path)).stdout.startswith(f"{ids[1]} went to h100-reserved: ")
    replayed = await cli("replay", path, "--policy", "least_requests")
    assert replayed.exit_code == 0, replayed.output
    assert "3 of 3 choices come out the same" in replayed.stdout
    machines = [json.loads(line)["fleet"] for line in path.read_text().splitlines() if line.startswith('{"fleet"')]
    assert [row["gpu"]["type"] for row in machines[-1]] == ["H100-80G", "A100-80G", "A100-80G"]


async def test_a_file_that_cannot_be_written_costs_records_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Requests are answered; what was lost is counted, and said once."""
    async with listening(config(file=str(tmp_path / "no" / "d.jsonl"))) as running, client(running) as http:
        for _ in range(2):
            await ask(http)
            dropped = running.metric("penstock_decision_records_total", outcome="dropped")
            await until(
                lambda before=dropped: running.metric("penstock_decision_records_total", outcome="dropped") > before
            )
    assert [record.getMessage() for record in caplog.records if "cannot be written" in record.getMessage()][1:] == []
    assert "records are dropped: No such file or directory" in caplog.text
