"""OpenAI's fields as tensors: both dialects, types checked, and what cannot be honoured refused by name."""

import json

import pytest

from backends.triton.errors import Refusal
from backends.triton.inference import ModelInfo, TensorInfo
from backends.triton.tensors import generation_tensors, refuse_unsupported, sampling
from config.schema import TritonTensors
from tests.support.triton_fake import LLM


def test_fields_take_vllms_names() -> None:
    """Sampling fields pass by vLLM's names; fields that are none of its business do not."""
    fields = {
        "model": "m", "user": "u", "max_completion_tokens": 7, "max_tokens": 9, "temperature": 1, "top_p": 0.5, "top_k": 3,
        "min_p": 0.1, "stop": "END", "seed": 4, "presence_penalty": 0.1, "frequency_penalty": 0.2, "repetition_penalty": 1.1,
        "ignore_eos": True, "min_tokens": 2,
    }  # fmt: skip
    assert sampling(fields, chat=True, room_tokens=None) == {
        "max_tokens": 7, "temperature": 1.0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "stop": ["END"], "seed": 4,
        "presence_penalty": 0.1, "frequency_penalty": 0.2, "repetition_penalty": 1.1, "ignore_eos": True, "min_tokens": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("chat", "room", "limit"), [(True, None, 2048), (True, 500, 500), (True, -3, 1), (False, None, 16), (False, 5, 5)]
)
def test_the_length_is_always_bounded(chat: bool, room: int | None, limit: int) -> None:
    """Without max_tokens a chat may use the context that is left, a completion OpenAI's 16 tokens."""
    assert sampling({}, chat=chat, room_tokens=room) == {"max_tokens": limit}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_tokens", "many"), ("max_tokens", 1.5), ("max_tokens", 0), ("max_tokens", True), ("temperature", "hot"),
        ("temperature", False), ("ignore_eos", 1), ("stop", 7), ("stop", [""]), ("stop", ["x"] * 17), ("seed", [1]), ("seed", 2**70),
        ("seed", float("inf")), ("temperature", float("nan")),
    ],
)  # fmt: skip
def test_wrong_types_are_refused_by_name(field: str, value: object) -> None:
    """A value of the wrong type is a 400 that names its field, not an engine's riddle."""
    with pytest.raises(Refusal, match=field) as refusal:
        sampling({field: value}, chat=True, room_tokens=None)
    assert (refusal.value.status, refusal.value.param) == (400, field)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 2), ("tools", [{"type": "function"}]), ("logprobs", True), ("logprobs", 0), ("top_logprobs", 5),
        ("logit_bias", {"5": 1}), ("response_format", {"type": "json_object"}), ("echo", True), ("best_of", 2),
        ("tool_choice", "required"), ("chat_template", "{{ x }}"),
    ],
)  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(field: str, value: object) -> None:
    """A field that would silently change nothing is a 400 naming it."""
    with pytest.raises(Refusal) as refusal:
        refuse_unsupported({field: value})
    assert (refusal.value.status, refusal.value.param) == (400, field)


def test_switched_off_fields_pass() -> None:
    """Fields that clients send with their defaults are no reason to refuse."""
    refuse_unsupported(
        {
            "n": 1,
            "tools": [],
            "tool_choice": "none",
            "logprobs": False,
            "logit_bias": {},
            "response_format": {"type": "text"},
            "echo": None,
        }
    )


def test_the_vllm_backend_gets_one_json_tensor() -> None:
    """Parameters travel as one JSON string, optional outputs are asked for, and the prompt is kept out of the answer."""
    tensors = generation_tensors(LLM, TritonTensors(), prompt="é", stream=True, parameters={"max_tokens": 3})
    values = {tensor.name: (tensor.datatype, tensor.shape, tensor.values) for tensor in tensors}
    assert json.loads(bytes(values.pop("sampling_parameters")[2][0])) == {"max_tokens": 3}  # type: ignore[arg-type]
    assert values == {
        "text_input": ("BYTES", (1,), ("é".encode(),)),
        "stream": ("BOOL", (1,), (True,)),
        "exclude_input_in_output": ("BOOL", (1,), (True,)),
        "return_finish_reason": ("BOOL", (1,), (True,)),
        "return_num_output_tokens": ("BOOL", (1,), (True,)),
    }


def test_tensorrt_llm_gets_one_tensor_a_parameter() -> None:
    """Each configured parameter is a tensor with the model's own datatype and rank; a batching model gets its batch dimension."""
    info = ModelInfo(
        inputs={
            "text_input": TensorInfo(datatype="BYTES", rank=2),
            "max_tokens": TensorInfo(datatype="INT32", rank=2),
            "temperature": TensorInfo(datatype="FP32", rank=2),
            "stop_words": TensorInfo(datatype="BYTES", rank=2),
        },
        outputs={},
        max_batch_size=8,
    )
    names = TritonTensors(
        sampling_parameters=None,
        parameters={"max_tokens": "max_tokens", "temperature": "temperature", "stop": "stop_words", "top_k": "top_k"},
    )
    tensors = generation_tensors(
        info,
        names,
        prompt="x",
        stream=True,
        parameters={"max_tokens": 3, "temperature": 0.5, "stop": ["a", "b"], "top_k": 4},
    )
    assert {tensor.name: (tensor.shape, tensor.values) for tensor in tensors} == {
        "text_input": ((1, 1), (b"x",)),
        "max_tokens": ((1, 1), (3,)),
        "temperature": ((1, 1), (0.5,)),
        "stop_words": ((1, 2), (b"a", b"b")),
    }


def test_a_model_without_the_text_input_is_a_servers_error() -> None:
    """A tensor name that the model does not have is the operator's mistake, not the client's."""
    with pytest.raises(Refusal) as refusal:
        generation_tensors(LLM, TritonTensors(text_input="prompt"), prompt="x", stream=True, parameters={})
    assert refusal.value.status == 500
