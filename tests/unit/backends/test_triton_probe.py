"""The probe: what makes a Triton server ready, and when READY is not believed."""

import pytest

from backends.backend import FirstByteTimeout, ServedModel, StreamCut
from backends.triton.inference import EngineFault
from config.schema import Upstream
from tests.support.triton_fake import NEVER_S, FakeTriton, backend_over, chat, embeddings, read, token
from tests.support.virtual_time import run_virtual

QUICK = Upstream(first_byte_timeout_s=5, stall_timeout_s=2)
DEAD = EngineFault("INTERNAL", "Stub process 'textgen_0_0' is not healthy.")
PAGE = """\
# TYPE nv_inference_pending_request_count gauge
nv_inference_pending_request_count{model="textgen",version="1"} 3
nv_trt_llm_request_metrics{model="m",request_type="scheduled"} 5
nv_trt_llm_request_metrics{model="m",request_type="waiting"} 2
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",model="m"} 0.25
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="max",model="m"} 400
nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="tokens_per",model="m"} 64
"""


def test_a_ready_server_is_ready() -> None:
    """Server and models ready, no suspicion: ready, with the models by kind and without asking any model to work."""

    async def main() -> None:
        client = FakeTriton([token("a")])
        found = await backend_over(client).probe()
        assert (found.ready, found.detail) == (True, "")
        assert found.models == (ServedModel(name="textgen"), ServedModel(name="embed", kind="embedding"))
        assert (client.streams, client.batches, found.metrics) == ([], [], {})

    run_virtual(main())


@pytest.mark.parametrize(
    ("server", "textgen", "detail"),
    [
        (False, True, "server is not ready"),
        (True, False, "model textgen is not ready"),
        (
            EngineFault("UNAVAILABLE", "failed to connect to ipv4:10.0.0.1:8001"),
            True,
            "cannot be reached (UNAVAILABLE)",
        ),
    ],
)
def test_not_ready_says_why(server: bool | EngineFault, textgen: bool, detail: str) -> None:
    """Whatever is missing is named, without addresses."""

    async def main() -> None:
        client = FakeTriton([token("a")])
        client.server_is_ready = server
        client.models_ready["textgen"] = textgen
        found = await backend_over(client).probe()
        assert not found.ready
        assert detail in found.detail
        assert "10.0.0.1" not in found.detail

    run_virtual(main())


def test_a_dead_model_is_not_ready_until_it_answers_again() -> None:
    """After a request met a dead process, READY is not believed: each probe asks the model until it answers."""

    async def main() -> list[tuple[bool, str]]:
        client = FakeTriton([DEAD], [DEAD], [DEAD], [token("a")])
        backend = backend_over(client)
        reply = await backend.send(chat())
        assert reply.status == 503
        looks = [await backend.probe() for _ in range(4)]
        assert len(client.streams) == 4  # the request, and three checks: the last look believes again
        return [(look.ready, look.detail) for look in looks]

    trouble = (False, "model textgen: its process is not healthy")
    assert run_virtual(main()) == [trouble, trouble, (True, ""), (True, "")]


@pytest.mark.parametrize("late", [False, True])
def test_a_silent_model_is_not_ready(late: bool) -> None:
    """A request that ran into a timeout, before or after its first token, makes the probe ask; a hanging model fails it in time."""

    async def main() -> None:
        client = FakeTriton([token("a"), NEVER_S] if late else [NEVER_S], [NEVER_S])
        backend = backend_over(client, upstream=QUICK)
        with pytest.raises(StreamCut if late else FirstByteTimeout):
            await read(await backend.send(chat()))
        found = await backend.probe()
        assert (found.ready, found.detail) == (False, "no answer within the probe's timeout")
        assert all(stream.cancelled for stream in client.streams)

    run_virtual(main())


def test_a_suspected_embedding_model_is_asked_for_one_row() -> None:
    """The check of an embedding model embeds one row."""

    async def main() -> list[bool]:
        client = FakeTriton()
        client.embed = lambda _: DEAD
        backend = backend_over(client)
        assert (await backend.send(embeddings("x"))).status == 503
        before = await backend.probe()
        client.embed = lambda _: bytes(8)
        return [before.ready, (await backend.probe()).ready]

    assert run_virtual(main()) == [False, True]


def test_traffic_that_flows_clears_the_suspicion() -> None:
    """A model that answers a request after a failure is believed without a check."""

    async def main() -> tuple[bool, int]:
        client = FakeTriton([DEAD], [token("a", finish="stop")])
        backend = backend_over(client)
        for _ in range(2):
            await read(await backend.send(chat()))
        return (await backend.probe()).ready, len(client.streams)

    assert run_virtual(main()) == (True, 2)


def test_the_metrics_page_gives_the_figures() -> None:
    """Load and KV figures come from metrics_url, in ProbeResult's names."""

    async def main() -> None:
        replica = {"metrics_url": "http://metrics.test/metrics"}
        found = await backend_over(FakeTriton([token("a")]), replica=replica, metrics_page=PAGE).probe()
        assert found.metrics == {"running": 5, "waiting": 2, "kv_usage_ratio": 0.25}
        assert (found.kv_blocks, found.block_size) == (400, 64)

    run_virtual(main())


def test_missing_metrics_do_not_make_a_server_unready() -> None:
    """A metrics page that answers 404 leaves the figures unknown and the server ready."""

    async def main() -> None:
        found = await backend_over(FakeTriton([token("a")]), replica={"metrics_url": "http://metrics.test/"}).probe()
        assert (found.ready, found.metrics) == (True, {})

    run_virtual(main())
