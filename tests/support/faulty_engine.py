"""A vLLM-like server over real HTTP whose probes are always fine and whose POSTs meet a fault of the test's choice."""

import json

from tests.support.scripted_server import Peer, Script, ScriptedServer, answer, chunked

_JSON = "content-type: application/json\r\n"
MODELS = answer(json.dumps({"object": "list", "data": [{"id": "m", "max_model_len": 4096}]}).encode(), headers=_JSON)
METRICS = answer(b'vllm:num_requests_running{engine="0"} 0\n', headers="content-type: text/plain\r\n")


def engine_with(fault: Script) -> ScriptedServer:
    """GETs are answered as by a healthy engine; `fault` plays what follows each POST, its request read already."""

    async def play(peer: Peer) -> None:
        while True:
            request = await peer.request()
            target = request.split(b" ", 2)[1]
            if request.startswith(b"POST"):
                await fault(peer)
            else:
                pages = {b"/v1/models": MODELS, b"/metrics": METRICS}
                await peer.send(pages.get(target, answer(b"")))

    return ScriptedServer(play)


def sends(*parts: bytes, then_close: bool = False) -> Script:
    """A fault made of bytes."""

    async def play(peer: Peer) -> None:
        await peer.send(*parts)
        if then_close:
            raise ConnectionError

    return play


def error(status: str, message: str, headers: str = "") -> Script:
    """An error as vLLM words it, with an integer code."""
    body = {"error": {"message": message, "type": "SomeError", "param": None, "code": int(status[:3])}}
    return sends(answer(json.dumps(body).encode(), status=status, headers=_JSON + headers))


def events(*chunks: bytes, end: bool = True, then_close: bool = False) -> Script:
    """A chunked SSE answer; `end` False leaves it open."""
    return sends(*chunked(*chunks, end=end), then_close=then_close)
