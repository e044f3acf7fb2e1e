"""The inference protocol over `tritonclient.grpc.aio`. The only module that imports tritonclient, grpc and numpy.

Decides nothing: tensors in, tensors out, every gRPC error an EngineFault.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import urlsplit

import grpc
import numpy as np
from tritonclient.grpc import InferInput, InferRequestedOutput, aio
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from backends.triton.inference import EngineFault, ModelInfo, Outputs, Tensor, TensorInfo

T = TypeVar("T")

# Of a message: a long prompt, or a batch of embeddings, is a few MiB; gRPC's own default of 4 MiB is too little, no bound too much.
_MAX_MESSAGE_BYTES = 64 * 2**20
# A replica that came back is found again within a probe or two; gRPC's own backoff grows to two minutes.
_RECONNECT_MS = (100, 2000)
_DEFAULT_PORT = 8001  # Triton's gRPC port
# From 24.08 on: errors within a stream come as true gRPC statuses and end it. Older servers ignore the header.
_STATUS_HEADER = {"triton_grpc_error": "true"}
# What may travel on to the engine; other HTTP headers mean nothing there, and some would break HTTP/2.
_TRACE_HEADERS = ("traceparent", "tracestate")


class GrpcClient:
    """One channel to one server, opened at the first call (a channel belongs to the loop that runs then)."""

    def __init__(self, url: str, *, connect_timeout_s: float) -> None:
        parts = urlsplit(url)
        host = f"[{parts.hostname}]" if parts.hostname and ":" in parts.hostname else parts.hostname
        self._target = f"{host}:{parts.port or _DEFAULT_PORT}"
        self._tls = parts.scheme == "grpcs"
        initial_ms, longest_ms = _RECONNECT_MS
        self._options: list[tuple[str, int]] = [
            ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
            ("grpc.initial_reconnect_backoff_ms", initial_ms),
            ("grpc.max_reconnect_backoff_ms", longest_ms),
            ("grpc.min_reconnect_backoff_ms", round(connect_timeout_s * 1000)),  # gRPC's name for a connect timeout
            ("grpc.enable_http_proxy", 0),  # engines are neighbours; a proxy of the environment is for the outside
        ]
        self._opened: Any = None

    async def server_ready(self) -> bool:
        return bool(await _call(self._client().is_server_ready()))

    async def model_ready(self, model: str) -> bool:
        return bool(await _call(self._client().is_model_ready(model)))

    async def describe(self, model: str) -> ModelInfo:
        metadata = await _call(self._client().get_model_metadata(model))
        config = await _call(self._client().get_model_config(model))
        return ModelInfo(
            inputs={t.name: TensorInfo(datatype=t.datatype, rank=len(t.shape)) for t in metadata.inputs},
            outputs={t.name: TensorInfo(datatype=t.datatype, rank=len(t.shape)) for t in metadata.outputs},
            max_batch_size=config.config.max_batch_size,
        )

    def stream(
        self, model: str, tensors: Sequence[Tensor], *, request_id: str, headers: Mapping[str, str]
    ) -> "_GrpcStream":
        request = {"model_name": model, "inputs": [_input(t) for t in tensors], "request_id": request_id}
        trace = {name: headers[name] for name in _TRACE_HEADERS if name in headers}
        return _GrpcStream(self._client().stream_infer(_once(request), headers={**_STATUS_HEADER, **trace}))

    async def infer_rows(self, model: str, tensors: Sequence[Tensor], *, output: str, rows: int) -> list[bytes]:
        inputs = [_input(t) for t in tensors]
        result = await _call(self._client().infer(model, inputs, outputs=[InferRequestedOutput(output)]))
        values = result.as_numpy(output)
        if values is None or values.size == 0 or values.size % rows:
            raise EngineFault("INTERNAL", f"the model gave no {rows} rows of {output!r}")
        return [row.tobytes() for row in values.astype("<f4").reshape(rows, -1)]

    async def aclose(self) -> None:
        if self._opened is not None:
            await self._opened.close()

    def _client(self) -> Any:
        if self._opened is None:
            self._opened = aio.InferenceServerClient(self._target, ssl=self._tls, channel_args=self._options)
        return self._opened


class _GrpcStream:
    """One ModelStreamInfer call that carries one request, so that the call's end is the request's end."""

    def __init__(self, responses: Any) -> None:
        self._responses = responses
        self._cancelled = False

    async def next(self) -> Outputs | None:
        try:
            result, error = await self._responses.__anext__()
        except StopAsyncIteration:
            return None
        except grpc.RpcError as rpc_error:
            raise _fault(rpc_error) from None
        except asyncio.CancelledError:
            # grpc.aio says "cancelled" also when it is the call, not this task, that was: by our own `cancel`.
            task = asyncio.current_task()
            if self._cancelled and task is not None and not task.cancelling():
                raise EngineFault("CANCELLED", "closed by the gateway") from None
            raise
        if error is not None:
            raise _fault(error)
        return {
            output.name: result.as_numpy(output.name).reshape(-1).tolist() for output in result.get_response().outputs
        }

    def cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            self._responses.cancel()


async def _once(request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    yield request


async def _call(awaitable: Awaitable[T]) -> T:
    try:
        return await awaitable
    except (InferenceServerException, grpc.RpcError) as error:
        raise _fault(error) from None


def _fault(error: Any) -> EngineFault:
    if isinstance(error, InferenceServerException):
        code = str(error.status() or "").removeprefix("StatusCode.")
        return EngineFault(code, error.message() or "")
    return EngineFault(error.code().name, error.details() or "")


def _input(tensor: Tensor) -> Any:
    infer_input = InferInput(tensor.name, list(tensor.shape), tensor.datatype)
    dtype = np.object_ if tensor.datatype == "BYTES" else triton_to_np_dtype(tensor.datatype)
    try:
        values = np.array(tensor.values, dtype=dtype).reshape(tensor.shape)
    except (ValueError, OverflowError):  # a number beyond an INT32, say
        raise EngineFault("INVALID_ARGUMENT", f"{tensor.name} does not fit {tensor.datatype}") from None
    infer_input.set_data_from_numpy(values)
    return infer_input
