"""Whatever clients send: no 500, no crash, no hang, no leak, and every refusal in OpenAI's shape."""

import asyncio
import json
import secrets
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import note
from hypothesis import strategies as st

from config.schema import Config, DataPlane
from router.api import build_api
from router.gateway import Gateway
from router.ingress import HotPath
from tests.fuzz.request_reading import the_request_reader
from tests.support.fuzzing import Property, fuzz
from tests.support.gateway_thread import GatewayThread, gateway_thread
from tests.support.patience import PATIENCE_S
from tests.support.raw_http import RawClient

SEED = 5
MODEL, EMBEDDER = "sim", "embed"
# Small and quick: the longest answer has 500 tokens, whatever is asked for.
CONFIG = Config.model_validate(
    {
        "replicas": [
            {
                "name": f"r{number}", "backend": "simulated", "capacity": {"kv_blocks": 256, "max_model_len": 512, "block_size": 16},
                "models": [MODEL, {"name": EMBEDDER, "kind": "embedding"}], "simulated": {"speed": 1000},
            }
            for number in range(3)
        ]
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def gateways() -> Iterator[list[GatewayThread]]:
    """One with each data plane, the default first."""
    slow = CONFIG.model_copy(update={"server": CONFIG.server.model_copy(update={"data_plane": DataPlane.ASGI})})
    with gateway_thread(CONFIG) as wire, gateway_thread(slow) as asgi:
        yield [wire, asgi]


def openapi() -> dict[str, Any]:
    """Our document, as the gateway serves it."""
    gateway = Gateway(CONFIG, version="test")
    hot = HotPath(gateway.dispatcher, CONFIG.server, CONFIG.upstream.buffer_bytes, gateway.bodies)
    return build_api(gateway, hot, "test").openapi()


def asked_by_schema(url: str) -> list[Property]:
    """One property an operation: requests that our OpenAPI allows, and such that it forbids."""
    modes = schemathesis.GenerationMode
    found = []
    for result in schemathesis.openapi.from_dict(openapi()).get_all_operations():
        operation = result.ok()
        cases = operation.as_strategy(generation_mode=modes.POSITIVE) | operation.as_strategy(
            generation_mode=modes.NEGATIVE
        )
        strategies = {
            "url": st.just(url),
            "case": cases,
            "mended": st.sampled_from(["", "model", "ask", "ask"]),
            "kept": st.integers(0, 2**40 - 1),
            "stream": st.booleans(),
        }
        subject = Property(operation.label, asked, strategies)
        found += [subject] * (3 if operation.method == "post" else 1)
    return found


def asked(url: str, case: schemathesis.Case, mended: str, kept: int, stream: bool) -> None:
    """Sent by ourselves: schemathesis leaves a stream after some events."""
    if mended and isinstance(case.body, dict):
        case.body = mend(case.path, case.body, mended, kept, stream=stream)
    note(f"{case.method} {case.path} {case.path_parameters} {case.query} {case.body!r}")
    if case.path == ENDLESS:
        begun(requests.request(**case.as_transport_kwargs(base_url=url), timeout=PATIENCE_S, stream=True))
    else:
        judge(requests.request(**case.as_transport_kwargs(base_url=url), timeout=PATIENCE_S))


def begun(response: requests.Response) -> None:
    """Of a stream without an end the first event; then it is left."""
    with response:
        if response.status_code != 200:
            judge(response)
            return
        first = b""
        for part in response.iter_content(None):
            first += part
            if b"\n\n" in first.partition(b"event: live\n")[2]:
                break
        document = first.partition(b"event: live\ndata: ")[2].partition(b"\n\n")[0]
        assert json.loads(document)["whole"] is True


ENDLESS = "/admin/live"  # one event a second, for as long as somebody watches

VALID: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 9},
    "/v1/completions": {"model": MODEL, "prompt": "Hello", "max_tokens": 9},
    "/v1/embeddings": {"model": EMBEDDER, "input": "Hello"},
}


def mend(path: str, body: dict[str, Any], what: str, kept: int, *, stream: bool) -> dict[str, Any]:
    """Most of what is generated is refused for one field of many: with the rest mended, each gets further by itself."""
    valid = VALID[path]
    if what == "model":
        return {**body, "model": valid["model"]}
    names = [name for bit, name in enumerate(sorted(body)) if kept >> bit % 40 & 1 and kept >> (bit + 7) % 40 & 1]
    streamed = {"stream": True} if stream and "input" not in valid else {}
    return {**valid, **streamed, **{name: body[name] for name in names if name != "model"}}


def judge(response: requests.Response) -> None:
    """What no request may be answered with."""
    said = response.content
    assert response.status_code < 500, (response.status_code, said[:500])
    kind = response.headers.get("content-type", "")
    if response.status_code >= 400:
        assert kind == "application/json", kind
        assert {"message", "type", "param", "code"} == json.loads(said)["error"].keys()
    elif kind.startswith("text/event-stream"):
        *_, last, end = said.split(b"\n\n")
        assert end == b""
        assert last == b"data: [DONE]", said[-300:]
    elif kind == "application/json":
        json.loads(said)


def finished(gateway: GatewayThread) -> None:
    """Nothing is left, nothing has gone wrong unseen, and it serves on."""
    gateway.at_rest()
    assert gateway.errors.seen == []
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Still there?"}], "max_tokens": 3}
    assert requests.post(f"{gateway.url}/v1/chat/completions", json=body, timeout=PATIENCE_S).status_code == 200


REQUESTS = [
    b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n",
]
BODY = b'{"model":"sim","messages":[{"role":"user","content":"\xc3\xa9"}],"max_tokens":3,"stream":true,"stream_options":{"include_usage":true}}'
PARTS = [
    b"GET ", b"POST ", b"PUT ", b"OPTIONS * ", b"/v1/models", b"/v1/chat/completions", b"http://h/v1/models", b"/%00", b"/v1/../admin", b" HTTP/1.1\r\n",
    b" HTTP/1.0\r\n", b" HTTP/2.0\r\n", b"host: x\r\n", b"content-length: 5\r\n", b"content-length: -1\r\n", b"content-length: 99999999999999999999\r\n",
    b"transfer-encoding: chunked\r\n", b"transfer-encoding: xchunked\r\n", b"expect: 100-continue\r\n", b"expect: 200-maybe\r\n", b"connection: close\r\n",
    b"connection: upgrade\r\nupgrade: websocket\r\n", b"upgrade: h2c\r\n", b"content-encoding: gzip\r\n", b"content-type: text/plain\r\n", b"\r\n", b"\n", b"\x00",
    b"0\r\n\r\n", b"5\r\nhello\r\n", b"fffffffffffffffff\r\n", b"x-request-id: \xff\r\n", b"authorization: Bearer \x01\r\n", b"x: " + b"y" * 9000 + b"\r\n", BODY,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00",
]  # fmt: skip
JSON_PARTS = [
    b"null", b"true", b"-1", b"1e400", b"NaN", b"[]", b"{}", b'""', b'"\\ud800"', b'"\xff"', b'"n":128', b'"max_tokens":0', b'"max_tokens":null',
    b'"stop":["a","b"]', b'"stream":1', b'"messages":[]', b'"model":"embed"', b'"model":["sim"]', b'"prompt":[1,2,3]', b'"stream_options":7', b"[" * 70, b",", b":", b"}",
]  # fmt: skip


def whole(body: bytes, chunked: bool) -> bytes:
    if chunked:
        return REQUESTS[1] + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return REQUESTS[0] % len(body) + body


Spot = tuple[int, int, bytes]


def spoiled(data: bytes, spots: list[Spot]) -> bytes:
    for place, length, new in spots:
        at = place % (len(data) + 1)
        data = data[:at] + new + data[at + length :]
    return data


def spots(parts: list[bytes]) -> st.SearchStrategy[list[Spot]]:
    return st.lists(
        st.tuples(st.integers(0, 300), st.integers(0, 20), st.sampled_from(parts) | st.binary(max_size=6)), max_size=4
    )


BODIES = st.builds(spoiled, st.just(BODY), spots(JSON_PARTS))
RAW = (
    st.builds(whole, BODIES, st.booleans())
    | st.builds(spoiled, st.builds(whole, st.just(BODY), st.booleans()), spots(PARTS))
    | st.lists(st.sampled_from(PARTS) | st.binary(max_size=10), max_size=10).map(b"".join)
)


def bytes_on_a_socket(url: str) -> Property:
    """Bytes, cut anywhere, then the client's end of writing or its reset; the connection ends, and no answer is a 500."""

    async def talk(raw: bytes, cuts: list[int], polite: bool) -> bytes:
        client = await RawClient.connect(url)
        try:
            edges = sorted({cut % (len(raw) + 1) for cut in cuts} | {0, len(raw)})
            for start, end in pairwise(edges):
                await client.send_until_refused(raw[start:end], 1)
            if not polite:
                client.reset()
                return b""
            client.end_writing()
            return await client.until_closed()
        except OSError:  # it has closed already
            return b""
        finally:
            await client.close()

    def check(raw: bytes, cuts: list[int], polite: bool) -> None:
        said = asyncio.run(talk(raw, cuts, polite))
        assert b"HTTP/1.1 500" not in said, said[:500]
        assert b"Traceback" not in said, said[:500]
        assert said == b"" or said.startswith(b"HTTP/1.1 "), said[:100]

    return Property(
        "bytes on a socket",
        check,
        {"raw": RAW, "cuts": st.lists(st.integers(0, 300), max_size=3), "polite": st.booleans()},
    )


def rounds_of(gateways: list[GatewayThread], *, seconds: float = 0, seed: int, examples: int) -> int:
    wire, asgi = gateways
    found = [
        the_request_reader,
        *asked_by_schema(wire.url),
        *[bytes_on_a_socket(wire.url)] * 5,
        *asked_by_schema(asgi.url)[-3:],  # the last operation is a hot one
        *[bytes_on_a_socket(asgi.url)] * 2,
    ]
    rounds = fuzz(found, seconds=seconds, seed=seed, examples=examples)
    assert rounds >= len(found)
    for gateway in gateways:
        finished(gateway)
    return rounds


def test_fuzz_front_door(gateways: list[GatewayThread]) -> None:
    """Some seconds of what our OpenAPI allows and forbids, and of bytes that are hardly HTTP; the same ones each time."""
    assert rounds_of(gateways, seed=SEED, examples=15) > 0


@pytest.mark.bars
@pytest.mark.timeout(1800)
def test_fuzz_front_door_for_long(gateways: list[GatewayThread]) -> None:
    """Ten minutes, other ones each time."""
    assert rounds_of(gateways, seconds=600, seed=secrets.randbelow(2**32), examples=100) > 0
