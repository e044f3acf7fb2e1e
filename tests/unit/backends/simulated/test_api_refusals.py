"""What the simulated engine refuses, and how: vLLM's error objects."""

import json

import pytest

from backends.simulated.options import EngineOptions
from tests.support.simulated_calls import CHAT, COMPLETIONS, EMBEDDINGS, HELLO, backend, call, error, read
from tests.support.virtual_time import run_virtual


@pytest.mark.parametrize(
    ("path", "fields", "code", "kind"),
    [
        (CHAT, {"messages": HELLO, "model": "nope"}, 404, "NotFoundError"),
        (CHAT, {"messages": HELLO, "model": "sim-embed"}, 400, "BadRequestError"),
        (EMBEDDINGS, {"input": "x", "model": "sim-8b"}, 400, "BadRequestError"),
        ("/v1/responses", {"model": "sim-8b"}, 404, "NotFoundError"),
        (CHAT, {"messages": HELLO, "max_tokens": 1024}, 400, "BadRequestError"),
        (CHAT, {"messages": HELLO, "max_tokens": 0}, 400, "BadRequestError"),
        (CHAT, {"messages": HELLO, "max_tokens": "many"}, 400, "BadRequestError"),
        (CHAT, {"messages": []}, 400, "BadRequestError"),
        (CHAT, {}, 400, "BadRequestError"),
        (CHAT, {"messages": HELLO, "n": 1000}, 400, "BadRequestError"),
        (CHAT, {"messages": HELLO, "logprobs": True}, 400, "BadRequestError"),
        (CHAT, {"messages": HELLO, "stop": ""}, 400, "BadRequestError"),
        (CHAT, {"messages": HELLO, "continue_final_message": True}, 400, "BadRequestError"),
        (
            CHAT,
            {"messages": HELLO, "continue_final_message": True, "add_generation_prompt": True},
            400,
            "BadRequestError",
        ),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "BadRequestError"),
        (COMPLETIONS, {"prompt": "water " * 2000}, 400, "BadRequestError"),
        (COMPLETIONS, {"prompt": ""}, 400, "BadRequestError"),
        (COMPLETIONS, {"prompt": []}, 400, "BadRequestError"),
        (COMPLETIONS, {"prompt": ["a", "b"]}, 400, "BadRequestError"),
        (COMPLETIONS, {"prompt": [1, -1]}, 400, "BadRequestError"),
        (COMPLETIONS, {"prompt": [2**70]}, 400, "BadRequestError"),
        (COMPLETIONS, {"prompt": "x", "echo": True}, 400, "BadRequestError"),
        (COMPLETIONS, {"prompt": "x", "min_tokens": 9, "max_tokens": 8}, 400, "BadRequestError"),
        (EMBEDDINGS, {"input": [], "model": "sim-embed"}, 400, "BadRequestError"),
        (EMBEDDINGS, {"input": [{}], "model": "sim-embed"}, 400, "BadRequestError"),
        (EMBEDDINGS, {"input": "x", "model": "sim-embed", "dimensions": 3}, 400, "BadRequestError"),
    ],
)
def test_bad_bodies_are_refused_as_vllm_does(path: str, fields: dict[str, object], code: int, kind: str):
    """The status, the type and the code of vLLM's error object."""
    found = error(path, fields)
    assert (found["code"], found["type"]) == (code, kind)
    assert found["message"]


def test_a_busy_engine_answers_503():
    """Beyond its queue bound the engine refuses in vLLM's way."""

    async def main() -> tuple[int, bytes]:
        subject = backend(EngineOptions(kv_blocks=256, max_queued=1))
        first = await subject.send(call(CHAT, {"messages": HELLO, "stream": True}))
        second = await subject.send(call(CHAT, {"messages": HELLO, "stream": True}))
        body = await read(second)
        await first.aclose()
        await subject.aclose()
        return second.status, body

    status, body = run_virtual(main())
    assert (status, json.loads(body)["error"]["code"]) == (503, 503)
