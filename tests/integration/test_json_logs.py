"""`log_format: json`: whatever a gateway process says is one JSON object a line, from its start to its end."""

import json
import signal

import pytest

from tests.support.asgi import chat
from tests.support.gateway_process import started
from tests.support.raw_http import ask, post

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_every_line_is_an_object(workers: str) -> None:
    """Starting, serving, refusing, draining, of one process and of a crew; a hostile id stays within its field."""
    async with started("--port", "0", "--log-format", "json", "--workers", workers) as gateway:
        address = (await gateway.until_log(r"listens on (http://[^\s\"]+)"))[1]
        forged = post(CHAT, chat("Hello", model="sim-8b", max_tokens=2), 'x-request-id: a","status":"forged')
        assert (await ask(address, forged)).status == 200
        assert (await ask(address, post(CHAT, b"{"))).status == 400
        gateway.signal(signal.SIGTERM)
        assert await gateway.exit_code() == 0
    lines = [json.loads(line) for line in gateway.log.splitlines() if line]
    assert all({"ts", "level", "logger", "msg"} <= line.keys() for line in lines)
    served, refused = sorted(
        (line for line in lines if line["logger"] == "penstock.request"), key=lambda line: line["status"]
    )
    assert (served["id"], served["status"], served["output_tokens"]) == ('a","status":"forged', 200, 2)
    assert (refused["status"], refused["model"]) == (400, "other")
    assert any(line["msg"].startswith("draining") for line in lines)
