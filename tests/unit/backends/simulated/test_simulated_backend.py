"""The embedded backend: the contract of backends/backend.py, the probe, sleep, closing, determinism."""

import asyncio
import json
import subprocess
import sys

import pytest

from backends.backend import Backend, ConnectFailed, StreamCut
from backends.simulated.options import EngineOptions
from tests.support.simulated_calls import (
    CHAT,
    COMPLETIONS,
    HELLO,
    OPTIONS,
    backend,
    call,
    read,
)
from tests.support.virtual_time import run_virtual


def test_backend_satisfies_the_protocol():
    """Mypy and readers may rely on it being a Backend."""
    subject: Backend = backend()
    assert subject is not None


def test_a_second_turn_hits_the_first_ones_blocks():
    """Prompt and generated blocks of a turn are cached tokens of the next, in whole blocks."""

    async def main() -> tuple[int, int]:
        subject = backend()
        first = json.loads(
            await read(await subject.send(call(CHAT, {"messages": HELLO, "max_tokens": 100, "ignore_eos": True})))
        )
        messages = [*HELLO, first["choices"][0]["message"], {"role": "user", "content": "More"}]
        second = json.loads(await read(await subject.send(call(CHAT, {"messages": messages, "max_tokens": 1}))))
        await subject.aclose()
        return second["usage"]["prompt_tokens_details"]["cached_tokens"], first["usage"]["total_tokens"]

    cached, total = run_virtual(main())
    assert cached % OPTIONS.block_size == 0
    assert total - 2 * OPTIONS.block_size < cached <= total


def test_probe_tells_everything():
    """A probe of the embedded engine has every capacity and all figures, fresh."""

    async def main() -> None:
        subject = backend()
        reply = await subject.send(
            call(CHAT, {"messages": HELLO, "max_tokens": 500, "ignore_eos": True, "stream": True})
        )
        body = reply.body()
        await anext(body)
        found = await subject.probe()
        assert found.ready
        assert [(m.name, m.kind, m.max_model_len) for m in found.models] == [
            ("sim-8b", "chat", 1024), ("sim-embed", "embedding", 1024),
        ]  # fmt: skip
        assert (found.kv_blocks, found.block_size) == (256, 16)
        assert (found.max_num_seqs, found.max_num_batched_tokens) == (256, 8192)
        assert found.metrics["running"] == 1
        assert 0 < found.metrics["kv_usage_ratio"] < 0.1
        assert set(found.metrics) == {
            "running", "waiting", "kv_usage_ratio", "preemptions_total", "prefix_queries_total", "prefix_hits_total",
            "iteration_total",
        }  # fmt: skip
        await reply.aclose()
        assert (await subject.probe()).metrics["kv_usage_ratio"] == 0
        await subject.aclose()

    run_virtual(main())


def test_aclose_aborts_even_an_unread_reply():
    """A reply that nobody read holds nothing after aclose, which may be called twice."""

    async def main() -> None:
        subject = backend()
        reply = await subject.send(call(CHAT, {"messages": HELLO, "stream": True}))
        await reply.aclose()
        await reply.aclose()
        found = await subject.probe()
        assert (found.metrics["running"], found.metrics["waiting"]) == (0, 0)
        await subject.aclose()

    run_virtual(main())


def test_a_closed_backend_looks_like_a_dead_machine():
    """Open streams are cut, new calls find nobody, the probe is not ready."""

    async def main() -> None:
        subject = backend()
        reply = await subject.send(
            call(CHAT, {"messages": HELLO, "stream": True, "max_tokens": 500, "ignore_eos": True})
        )
        body = reply.body()
        await anext(body)
        await subject.aclose()
        with pytest.raises(StreamCut):
            await anext(body)
        with pytest.raises(ConnectFailed):
            await subject.send(call(CHAT, {"messages": HELLO}))
        assert not (await subject.probe()).ready

    run_virtual(main())


def test_sleep_shows_in_the_probe_and_wake_ends_it():
    """Asleep is not ready; a stream opened meanwhile goes on after wake."""

    async def main() -> None:
        subject = backend()
        subject.sleep()
        found = await subject.probe()
        assert (found.ready, found.asleep, found.detail) == (False, True, "asleep")
        reply = await subject.send(call(CHAT, {"messages": HELLO, "max_tokens": 2}))
        asyncio.get_running_loop().call_later(50, subject.wake)
        assert json.loads(await read(reply))["choices"]
        assert asyncio.get_running_loop().time() > 50
        assert (await subject.probe()).ready
        await subject.aclose()

    run_virtual(main())


def test_two_runs_under_virtual_time_are_byte_identical():
    """Same options, same calls, same clock: the same bytes, preemptions and all."""

    def run() -> list[bytes]:
        async def main() -> list[bytes]:
            subject = backend(EngineOptions(kv_blocks=40, seed=3, max_model_len=512))
            fields = {"stream": True, "max_tokens": 150, "stream_options": {"include_usage": True}, "ignore_eos": True}
            replies = [
                await subject.send(call(COMPLETIONS, fields | {"prompt": f"Gate {n}"}, f"r{n}")) for n in range(6)
            ]
            bodies = await asyncio.gather(*map(read, replies))
            assert (await subject.probe()).metrics["preemptions_total"] > 0
            await subject.aclose()
            return bodies

        return run_virtual(main())

    assert run() == run()


def test_the_backend_is_cheap_to_import():
    """No web server, no array library, no SDK comes with it."""
    code = "import sys, backends.simulated.backend; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout
    assert not {"uvicorn", "starlette", "fastapi", "numpy", "httpx", "prometheus_client"} & set(output.split())
