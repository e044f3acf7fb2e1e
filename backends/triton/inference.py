"""Triton's inference protocol in our terms: tensors, a model's description, a stream of responses, faults.

The seam under the backend: `grpc_client` implements it over tritonclient, tests implement it in memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

Value = bytes | bool | int | float
Outputs = Mapping[str, Sequence[Value]]  # output tensor -> its values, flattened


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One input of a request; BYTES values are bytes."""

    name: str
    datatype: str  # Triton's: BYTES, BOOL, INT32, FP32 ...
    shape: tuple[int, ...]
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """What a model says of one tensor; `rank` counts the batch dimension where the model batches."""

    datatype: str
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a model takes and gives. `max_batch_size` 0: requests carry no batch dimension."""

    inputs: Mapping[str, TensorInfo]
    outputs: Mapping[str, TensorInfo]
    max_batch_size: int = 0


class EngineFault(Exception):
    """A gRPC error: `code` is its status name, empty where the server put an error into a stream without one."""

    def __init__(self, code: str, details: str) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details


class ResponseStream(Protocol):
    """The responses of one request; `next` says None at the end and raises EngineFault."""

    async def next(self) -> Outputs | None: ...

    def cancel(self) -> None:
        """Stop the request in the engine; more than once does nothing more."""


class InferenceClient(Protocol):
    """One Triton server. Everything raises EngineFault; timeouts are the caller's (cancelling a call cancels it upstream)."""

    async def server_ready(self) -> bool: ...

    async def model_ready(self, model: str) -> bool: ...

    async def describe(self, model: str) -> ModelInfo: ...

    def stream(
        self, model: str, tensors: Sequence[Tensor], *, request_id: str, headers: Mapping[str, str]
    ) -> ResponseStream: ...

    async def infer_rows(self, model: str, tensors: Sequence[Tensor], *, output: str, rows: int) -> list[bytes]:
        """One request, its `output` as little-endian FP32 bytes, one item a row."""

    async def aclose(self) -> None: ...
