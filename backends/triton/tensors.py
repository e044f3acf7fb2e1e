"""OpenAI's request fields as a Triton LLM model's input tensors, and the fields that cannot be honoured.

Two dialects: the vLLM backend takes one JSON string of SamplingParams, TensorRT-LLM one tensor a parameter. The model's own
metadata decides datatypes, ranks and which optional inputs exist.
"""

from collections.abc import Mapping

import msgspec

from backends.triton.errors import Refusal, unsupported
from backends.triton.inference import ModelInfo, Tensor, TensorInfo, Value
from config.schema import TritonTensors

FINISH_REASON = "finish_reason"
OUTPUT_TOKENS = "num_output_tokens"
INPUT_TOKENS = "num_input_tokens"

_COMPLETION_DEFAULT_TOKENS = 16  # OpenAI's default for /v1/completions
# Chat has no default short of the context, but SamplingParams' own is 16, which would cut every answer. Half of the smallest context
# in common use (4,096) leaves the other half to the prompt.
_CHAT_DEFAULT_TOKENS = 2048
_MAX_STOPS = 16  # OpenAI admits 4; vLLM has no bound

_MAX_NUMBER = 2**63 - 1  # what JSON parsers and INT64 tensors hold; infinity and NaN are not below it

_FLOATS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
_INTEGERS = ("max_tokens", "min_tokens", "top_k", "seed")
_FLOAT_TYPES = ("FP16", "FP32", "FP64")
_FLAGS = ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output")

# Fields whose value would change the answer and that a text-in, text-out model cannot honour -> the values that mean "off".
_OFF: Mapping[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "prompt_logprobs": (),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "structured_outputs": ({},),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "modalities": (["text"],),
    "audio": (),
    "echo": (False,),
    "suffix": ("",),
    "chat_template": (),
    "chat_template_kwargs": ({},),
}


def refuse_unsupported(fields: Mapping[str, object]) -> None:
    """Raise the 400 that names the first field which cannot be honoured."""
    for name, off in _OFF.items():
        value = fields.get(name)
        # By type too, for 1 == True and 0 == False; a completion's `logprobs: 0` does ask for them.
        if value is not None and not any(type(value) is type(o) and value == o for o in off):
            raise unsupported(name, "is not supported by this model's backend")


def sampling(fields: Mapping[str, object], *, chat: bool, room_tokens: int | None) -> dict[str, object]:
    """The request's sampling parameters by vLLM's names; `max_tokens` is always there.

    `room_tokens`: what the context leaves to the answer, where the context is known.
    """
    values: dict[str, object] = {}
    limit = fields.get("max_completion_tokens")
    fields = {**fields, "max_tokens": fields.get("max_tokens") if limit is None else limit}
    for name in _FLOATS:
        if (value := fields.get(name)) is not None:
            values[name] = _number(name, value, float)
    for name in _INTEGERS:
        if (value := fields.get(name)) is not None:
            values[name] = _number(name, value, int)
    for name in _FLAGS:
        if (value := fields.get(name)) is not None:
            values[name] = _flag(name, value)
    stops = _stops(fields.get("stop"))
    if stops:
        values["stop"] = stops
    if "max_tokens" not in values:
        known_room = _CHAT_DEFAULT_TOKENS if room_tokens is None else max(1, room_tokens)
        values["max_tokens"] = known_room if chat else min(known_room, _COMPLETION_DEFAULT_TOKENS)
    elif int(str(values["max_tokens"])) < 1:
        raise Refusal(400, "`max_tokens` must be at least 1", code="invalid_value", param="max_tokens")
    return values


def generation_tensors(
    info: ModelInfo, names: TritonTensors, *, prompt: str, stream: bool, parameters: Mapping[str, object]
) -> list[Tensor]:
    """All inputs of one generation that the model has."""
    text = info.inputs.get(names.text_input)
    if text is None:
        raise Refusal(500, f"The model has no input {names.text_input!r}", code="engine_error")
    tensors = [_tensor(names.text_input, text, prompt)]
    wanted: dict[str, object] = {"exclude_input_in_output": True}  # else the vLLM backend repeats the prompt
    for output in (FINISH_REASON, OUTPUT_TOKENS, INPUT_TOKENS):
        if output in info.outputs:
            wanted[f"return_{output}"] = True
    if names.stream is not None:
        wanted[names.stream] = stream
    if names.sampling_parameters is not None:
        wanted[names.sampling_parameters] = msgspec.json.encode(parameters)
    for field, name in names.parameters.items():
        if field in parameters:
            wanted[name] = parameters[field]
    tensors += [_tensor(name, info.inputs[name], value) for name, value in wanted.items() if name in info.inputs]
    return tensors


def _tensor(name: str, info: TensorInfo, value: object) -> Tensor:
    """Ones for every dimension but the last, which holds a list's items: right for models that batch and models that do not."""
    values = tuple(_value(info.datatype, item) for item in (value if isinstance(value, list) else [value]))
    return Tensor(
        name=name,
        datatype=info.datatype,
        shape=(1,) * (info.rank - 1) + (len(values),) * (info.rank > 0),
        values=values,
    )


def _value(datatype: str, item: object) -> Value:
    if datatype == "BYTES":
        return item if isinstance(item, bytes) else str(item).encode("utf-8", "replace")
    if datatype == "BOOL":
        return bool(item)
    return float(str(item)) if datatype in _FLOAT_TYPES else int(str(item))


def _number(name: str, value: object, kind: type[int] | type[float]) -> int | float:
    # JSON has one number type: 1 is a fine temperature, and 5.0 a fine max_tokens.
    number = not isinstance(value, bool) and isinstance(value, int | float) and abs(value) <= _MAX_NUMBER
    if not isinstance(value, int | float) or not number or (kind is int and value != int(value)):
        raise Refusal(
            400, f"`{name}` must be {'an integer' if kind is int else 'a number'}", code="invalid_type", param=name
        )
    return kind(value)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise Refusal(400, f"`{name}` must be true or false", code="invalid_type", param=name)
    return value


def _stops(value: object) -> list[str]:
    stops = [value] if isinstance(value, str) else value
    if stops is None:
        return []
    if not isinstance(stops, list) or len(stops) > _MAX_STOPS or not all(isinstance(s, str) and s for s in stops):
        raise Refusal(400, f"`stop` must be a string or up to {_MAX_STOPS} strings", code="invalid_type", param="stop")
    return stops
