"""Embeddings through the micro-batcher, against a server in memory: who goes with whom, and who fails with whom."""

import asyncio
import base64
import json
import struct
from typing import Any

import pytest

from backends.backend import FirstByteTimeout, UpstreamError
from backends.triton.backend import TritonBackend
from backends.triton.inference import EngineFault, ModelInfo, TensorInfo
from config.schema import MicroBatch, Upstream
from tests.support.triton_fake import FakeTriton, backend_over, embeddings, read
from tests.support.virtual_time import run_virtual

BAD = EngineFault("INVALID_ARGUMENT", "a row cannot be embedded")


def vector(text: bytes) -> bytes:
    return struct.pack("<2f", len(text), 0.5)


async def ask(backend: TritonBackend, value: object, **fields: object) -> tuple[int, Any]:
    reply = await backend.send(embeddings(value, **fields))
    return reply.status, json.loads(await read(reply))


def fake() -> FakeTriton:
    client = FakeTriton()
    client.embed = vector
    return client


def test_rows_of_all_requests_go_together() -> None:
    """Requests that come within the batch's age share one ModelInfer, and each gets its own rows in its own order."""

    async def main() -> tuple[Any, list[list[bytes]]]:
        client = fake()
        backend = backend_over(client)
        answers = await asyncio.gather(ask(backend, ["a", "bb"]), ask(backend, "ccc"), ask(backend, ["dddd", "e"]))
        return answers, client.batches

    answers, batches = run_virtual(main())
    assert batches == [[b"a", b"bb", b"ccc", b"dddd", b"e"]]
    lengths = [[row["embedding"][0] for row in body["data"]] for _, body in answers]
    assert lengths == [[1.0, 2.0], [3.0], [4.0, 1.0]]


def test_the_document_has_openais_shape() -> None:
    """A list of embeddings with their indices, the model as asked for, and estimated usage."""

    async def main() -> Any:
        return await ask(backend_over(fake()), ["a", "bb"])

    assert run_virtual(main()) == (
        200,
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": 0, "embedding": [1.0, 0.5]},
                {"object": "embedding", "index": 1, "embedding": [2.0, 0.5]},
            ],
            "model": "embed",
            "usage": {"prompt_tokens": 2, "total_tokens": 2},
        },
    )


def test_base64_is_the_floats_bytes() -> None:
    """encoding_format base64 is little-endian FP32, as OpenAI's SDK reads it."""

    async def main() -> Any:
        _, body = await ask(backend_over(fake()), "abc", encoding_format="base64")
        return body["data"][0]["embedding"]

    assert struct.unpack("<2f", base64.b64decode(run_virtual(main()))) == (3.0, 0.5)


@pytest.mark.parametrize(
    ("settings", "limit", "sizes"),
    [
        (MicroBatch(max_size=2), 32, [2, 2, 1]),
        (MicroBatch(max_size=32), 4, [4, 1]),
        (MicroBatch(max_tokens=3), 32, [3, 2]),
        (MicroBatch(), 0, [1, 1, 1, 1, 1]),
    ],
)
def test_batches_keep_to_every_bound(settings: MicroBatch, limit: int, sizes: list[int]) -> None:
    """Neither the configured bounds nor the model's own max_batch_size is exceeded."""

    async def main() -> list[int]:
        client = fake()
        rank = 2 if limit else 1
        client.infos["embed"] = ModelInfo(
            inputs={"text": TensorInfo(datatype="BYTES", rank=rank)}, outputs={}, max_batch_size=limit
        )
        await ask(backend_over(client, microbatch=settings), ["a", "b", "c", "d", "e"])
        return [len(batch) for batch in client.batches]

    assert run_virtual(main()) == sizes


def test_a_lone_row_waits_no_longer_than_its_age() -> None:
    """Without company a row goes after max_age_s."""

    async def main() -> float:
        await ask(backend_over(fake(), microbatch=MicroBatch(max_age_s=0.25)), "a")
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(0.25 + 0.01)


def test_a_cancelled_request_leaves_its_batch() -> None:
    """Rows nobody waits for any more are not sent; the others are."""

    async def main() -> list[list[bytes]]:
        client = fake()
        backend = backend_over(client)
        gone = asyncio.get_running_loop().create_task(ask(backend, ["x", "y"]))
        stays = asyncio.get_running_loop().create_task(ask(backend, "kept"))
        await asyncio.sleep(0.001)
        gone.cancel()
        assert (await stays)[0] == 200
        return client.batches

    assert run_virtual(main()) == [[b"kept"]]


def test_a_batch_that_nobody_waits_for_is_cancelled() -> None:
    """When the last request of a batch in flight goes away, its ModelInfer is cancelled."""

    async def main() -> int:
        client = fake()
        client.embed_takes_s = 100.0
        backend = backend_over(client)
        gone = asyncio.get_running_loop().create_task(ask(backend, "x"))
        await asyncio.sleep(1)
        gone.cancel()
        await asyncio.sleep(1)
        return len(asyncio.all_tasks()) - 1

    assert run_virtual(main()) == 0


def test_a_bad_row_fails_only_its_own_request() -> None:
    """A mixed batch refused for one row is tried again request by request."""

    async def main() -> tuple[list[int], int]:
        client = fake()
        client.embed = lambda text: BAD if b"bad" in text else vector(text)
        backend = backend_over(client)
        answers = await asyncio.gather(ask(backend, "a"), ask(backend, ["b", "bad"]), ask(backend, "c"))
        return [status for status, _ in answers], len(client.batches)

    assert run_virtual(main()) == ([200, 400, 200], 4)


def test_a_failing_batch_fails_only_its_members() -> None:
    """Other batches go on; a failure that is nobody's fault is not tried again here."""

    async def main() -> tuple[list[int], int]:
        client = fake()
        full = EngineFault("UNAVAILABLE", "Exceeds maximum queue size")
        client.embed = lambda text: full if b"full" in text else vector(text)
        backend = backend_over(client, microbatch=MicroBatch(max_size=2))
        answers = await asyncio.gather(*(ask(backend, text) for text in ("full", "a", "b", "c")))
        return [status for status, _ in answers], len(client.batches)

    assert run_virtual(main()) == ([503, 503, 200, 200], 2)


def test_silence_is_a_timeout() -> None:
    """A batch without an answer in time raises FirstByteTimeout for its requests."""

    async def main() -> float:
        client = fake()
        client.embed_takes_s = 1e6
        with pytest.raises(FirstByteTimeout):
            await ask(backend_over(client, upstream=Upstream(first_byte_timeout_s=3)), "a")
        return asyncio.get_running_loop().time()

    assert run_virtual(main()) == pytest.approx(3.0)


@pytest.mark.parametrize("after_s", [0.001, 1.0])
def test_closing_fails_who_still_waits(after_s: float) -> None:
    """Closing the backend ends the requests that wait: those in flight and those in the open batch."""

    async def main() -> bool:
        client = fake()
        client.embed_takes_s = 100.0
        backend = backend_over(client)
        waiting = asyncio.get_running_loop().create_task(ask(backend, "x"))
        await asyncio.sleep(after_s)
        await backend.aclose()
        with pytest.raises(UpstreamError):
            await waiting
        assert asyncio.get_running_loop().time() == after_s
        return client.closed

    assert run_virtual(main())


@pytest.mark.parametrize(
    ("value", "fields", "param"),
    [
        ("", {}, "input"),
        ([], {}, "input"),
        (["a", ""], {}, "input"),
        ([1, 2], {}, "input"),
        ([[1, 2]], {}, "input"),
        (None, {}, "input"),
        (["x"] * 2049, {}, "input"),
        ("a", {"dimensions": 8}, "dimensions"),
        ("a", {"encoding_format": "hex"}, "encoding_format"),
    ],
)
def test_bad_inputs_are_refused_by_name(value: object, fields: dict[str, object], param: str) -> None:
    """Token arrays, dimensions, empty or too many texts are a 400 naming the parameter, and are never sent."""

    async def main() -> tuple[int, str, int]:
        client = fake()
        status, body = await ask(backend_over(client), value, **fields)
        return status, body["error"]["param"], len(client.batches)

    assert run_virtual(main()) == (400, param, 0)
