"""One model on one Triton server: what it takes, and whether its process is believed alive.

Triton calls a model READY after its process died, and a stream in flight then hangs without an error. So what requests meet is
remembered here as a suspicion, and the probe asks the model itself (`check`) until it answers again.
"""

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from backends.backend import EngineCall, EngineReply, PulledReply, UpstreamError
from backends.triton.errors import Refusal, interpret, is_dead_stub
from backends.triton.inference import EngineFault, InferenceClient, ModelInfo

JSON = "application/json"


class TritonModel(Protocol):
    """A model that answers calls; raises Refusal, UpstreamError."""

    kind: str  # config.schema.ModelKind's values
    health: "ModelHealth"

    async def send(self, call: EngineCall) -> EngineReply: ...

    async def check(self) -> None:
        """Make the model do the least that proves it alive; raises EngineFault."""

    async def aclose(self) -> None: ...


class ModelHealth:
    """A model's description, asked once, and the suspicion against it."""

    def __init__(self, client: InferenceClient, name: str) -> None:
        self.name = name
        self.suspicion: str | None = None
        self._client = client
        self._info: ModelInfo | None = None

    async def info(self) -> ModelInfo:
        """What the model takes and gives; raises EngineFault."""
        if self._info is None:
            self._info = await self._client.describe(self.name)
        return self._info

    def answered(self) -> None:
        """The model gave something: it lives."""
        self.suspicion = None

    def silent(self) -> None:
        """A request ran into a timeout."""
        self.suspicion = "does not answer"

    def failed(self, fault: EngineFault, *, started: bool = False) -> Refusal | UpstreamError:
        """Remember what a fault says about the model, and what it means to the request."""
        if is_dead_stub(fault):
            self.suspicion = "its process is not healthy"
        meaning = interpret(fault, model=self.name, started=started)
        if not isinstance(meaning, Refusal) or meaning.status != 503:
            self._info = None  # it may have been loaded anew, with other tensors
        return meaning


class Document(PulledReply):
    """An answer that is there as a whole."""

    def __init__(self, status: int, document: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.status = status
        self.content_type = JSON
        self.headers: Mapping[str, str] = headers or {}
        self._document = document

    async def body(self) -> AsyncIterator[bytes]:
        yield self._document

    async def aclose(self) -> None:
        """Nothing is held."""


def refused(refusal: Refusal) -> Document:
    """A refusal as the engine's reply."""
    headers = {} if refusal.retry_after_s is None else {"retry-after": str(refusal.retry_after_s)}
    return Document(refusal.status, refusal.document(), headers)
