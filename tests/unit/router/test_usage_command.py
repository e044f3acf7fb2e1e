"""`penstock usage` as typed: what it asks, what it prints, what it says where it cannot."""

import json
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from router.cli import build_app

FIGURES = {
    "requests": 8, "completed": 7, "failed": 1, "cancelled": 0, "refused": 0, "input_tokens": 112,
    "cached_input_tokens": 16, "output_tokens": 12000, "reasoning_tokens": 0, "estimated_input_tokens": 0,
    "estimated_output_tokens": 0, "usd": 0.5,
}  # fmt: skip
TOLD = {
    "object": "usage",
    "resolution": "start",
    "from": "2026-01-01T00:00:00Z",
    "to": None,
    "group_by": ["tenant", "model"],
    "data": [
        {"tenant": "[bold]alice", "model": "m", **FIGURES},
        {"tenant": "bob", "model": "m", **FIGURES, "output_tokens": 0},
    ],
    "totals": {**FIGURES, "usd": 1.0},
    "left_out": 0,
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What a gateway was asked, which answers `TOLD`."""
    seen: list[dict[str, Any]] = []

    def get(url: str, *, params: dict[str, str], headers: dict[str, str], **_: object) -> httpx.Response:
        seen.append({"url": url, "params": params, "headers": headers})
        if params["format"] == "csv":
            return httpx.Response(200, text="tenant,usd\r\nalice,0.5\r\n")
        return httpx.Response(200, json=TOLD)

    monkeypatch.setattr(httpx, "get", get)
    return seen


def cli(*args: str) -> Result:
    return CliRunner().invoke(build_app(), ["usage", *args])


def test_it_prints_a_table_with_a_total(asked: list[dict[str, Any]]):
    """Names as they are, dollars a million output tokens, and nothing where there were none."""
    result = cli()
    assert result.exit_code == 0
    alice, bob, total = (line for line in result.stdout.splitlines() if "0.5000" in line or "total" in line)
    assert alice.split() == ["[bold]alice", "m", "8", "1", "112", "16", "12,000", "0.5000", "41.667"]
    assert bob.split()[-1] == "-"
    assert total.split()[0] == "total"
    assert asked == [
        {
            "url": "http://127.0.0.1:8080/admin/usage",
            "params": {"group_by": "tenant,model", "format": "json"},
            "headers": {},
        }
    ]


def test_what_is_asked_is_what_is_typed(asked: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch):
    """Window, groups, gateway and key."""
    monkeypatch.setenv("PENSTOCK_ADMIN_KEY", "sesame-sesame-sesame")
    result = cli(
        *("--by", "day,tenant", "--from", "2026-01-01", "--to", "2026-02-01", "--csv"),
        *("--gateway", "http://h:1/", "--key", "env:PENSTOCK_ADMIN_KEY"),
    )
    assert result.stdout.splitlines() == ["tenant,usd", "alice,0.5"]
    assert asked == [
        {
            "url": "http://h:1/admin/usage",
            "params": {"group_by": "day,tenant", "from": "2026-01-01", "to": "2026-02-01", "format": "csv"},
            "headers": {"authorization": "Bearer sesame-sesame-sesame"},
        }
    ]


def test_the_document_is_printed_as_it_came(asked: list[dict[str, Any]]):
    """For programs."""
    assert json.loads(cli("--json").stdout) == TOLD
    assert len(asked) == 1
    assert cli("--json", "--csv").exit_code == 2


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(401, json={"error": {"message": "no"}}), "--key"),
        (httpx.Response(400, json={"error": {"message": "`group_by` must be a list"}}), "must be a list"),
        (httpx.Response(502, text="<html>"), "502"),
        (httpx.Response(200, json={"hello": "world"}), "no gateway of this version"),
        (httpx.Response(200, text="<html>"), "no gateway of this version"),
    ],
)
def test_what_cannot_be_told_says_why(monkeypatch: pytest.MonkeyPatch, answer: httpx.Response, words: str):
    """In one line, with exit code 1."""
    monkeypatch.setattr(httpx, "get", lambda *_, **__: answer)
    result = cli()
    assert result.exit_code == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_gateway_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch):
    """With the flag that names another."""

    def refuse(*_: object, **__: object) -> httpx.Response:
        raise httpx.ConnectError("refused")

    monkeypatch.setattr(httpx, "get", refuse)
    result = cli()
    assert result.exit_code == 1
    assert "http://127.0.0.1:8080" in result.stderr
    assert "--gateway" in result.stderr
