"""A Triton replica as the gateway sees it: calls go to the model they name, refusals become replies.

Constructing one imports tritonclient (see `grpc_client`); the channel opens with the first call.
"""

from collections.abc import Callable
from datetime import UTC, datetime

import httpx

from backends.backend import EngineCall, EngineReply, ProbeResult
from backends.chat_template import ChatTemplate, read_source
from backends.triton.embedding import EmbeddingModel
from backends.triton.errors import Refusal, unknown_model
from backends.triton.generation import GenerationModel
from backends.triton.inference import InferenceClient
from backends.triton.model import TritonModel, refused
from backends.triton.probe import Prober
from config.schema import MicroBatch, ModelKind, ModelSpec, ReplicaConfig, Upstream


def _wall_time_s() -> float:
    return datetime.now(UTC).timestamp()  # for `created` only


class TritonBackend:
    """Implements `backends.backend.Backend`. Raises TemplateError, OSError for a chat template that cannot be used."""

    def __init__(
        self,
        replica: ReplicaConfig,
        *,
        upstream: Upstream,
        microbatch: MicroBatch,
        http: httpx.AsyncClient,
        probe_timeout_s: float = 2.0,  # config.schema.Probe's default
        wall_time_s: Callable[[], float] = _wall_time_s,
        client: InferenceClient | None = None,
    ) -> None:
        self._client = _connect(replica, upstream) if client is None else client
        self._upstream = upstream
        self._microbatch = microbatch
        self._max_model_len = replica.capacity.max_model_len
        self._wall_time_s = wall_time_s
        self._models = {spec.name: self._model(spec) for spec in replica.models}
        self._prober = Prober(
            client=self._client,
            models=self._models,
            metrics_url=replica.metrics_url,
            http=http,
            timeout_s=probe_timeout_s,
        )

    async def send(self, call: EngineCall) -> EngineReply:
        name = str(call.fields.get("model"))
        try:
            model = self._models.get(name)
            if model is None:
                raise unknown_model(name)
            return await model.send(call)
        except Refusal as refusal:
            return refused(refusal)

    async def probe(self) -> ProbeResult:
        return await self._prober.look()

    async def aclose(self) -> None:
        for model in self._models.values():
            await model.aclose()
        await self._client.aclose()

    def _model(self, spec: ModelSpec) -> TritonModel:
        if spec.kind is ModelKind.EMBEDDING:
            return EmbeddingModel(client=self._client, spec=spec, upstream=self._upstream, microbatch=self._microbatch)
        return GenerationModel(
            client=self._client,
            spec=spec,
            upstream=self._upstream,
            template=ChatTemplate(read_source(spec.chat_template)),
            max_model_len=self._max_model_len,
            wall_time_s=self._wall_time_s,
        )


def _connect(replica: ReplicaConfig, upstream: Upstream) -> InferenceClient:
    # Here and not above: grpc and numpy take a third of a second, which a gateway without Triton must not pay.
    from backends.triton.grpc_client import GrpcClient  # noqa: PLC0415

    assert replica.url is not None, "the schema asks for it"
    return GrpcClient(replica.url, connect_timeout_s=upstream.connect_timeout_s)
