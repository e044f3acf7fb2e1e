"""What one replica is: how its engine is spoken to, on which GPUs it runs, what it costs, what it serves."""

from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from config.checks import refusal, replica_problems
from config.gpus import MEMORY_RATIO, ShapeName
from config.section import Section


class BackendKind(StrEnum):
    """How a replica is spoken to."""

    VLLM = "vllm"
    OPENAI = "openai"
    TRITON = "triton"
    SIMULATED = "simulated"


class CostTier(StrEnum):
    """What a replica costs and how likely it is to vanish."""

    RESERVED = "reserved"
    ON_DEMAND = "on_demand"
    SPOT = "spot"


class ModelKind(StrEnum):
    """Which endpoint a model answers; `chat` models answer chat and plain completions."""

    CHAT = "chat"
    EMBEDDING = "embedding"


class TritonTensors(Section):
    """Names of a Triton LLM model's tensors; the defaults are the vLLM backend's.

    For TensorRT-LLM: `{text_input: text_input, stream: stream, text_output: text_output, max_tokens: max_tokens,
    sampling_parameters: null}` plus one tensor a sampling parameter, under `parameters`.
    """

    text_input: str = "text_input"
    text_output: str = "text_output"
    stream: str | None = "stream"
    sampling_parameters: str | None = Field(
        "sampling_parameters", description="JSON-string tensor of the vLLM backend; null for TensorRT-LLM"
    )
    parameters: dict[str, str] = Field(
        default_factory=dict,
        description="OpenAI field -> tensor name, one tensor each (TensorRT-LLM: {max_tokens: max_tokens})",
    )
    embedding: str = Field("embedding", description="output tensor of an embedding model, FP32 [dim]")
    embedding_input: str = Field("text", description="input tensor of an embedding model, BYTES [1]")


class ModelSpec(Section):
    """One model that a replica serves."""

    name: str = Field(min_length=1)
    kind: ModelKind = ModelKind.CHAT
    chat_template: str | None = Field(
        None, description="Jinja source or `file:/path`; Triton only (vLLM applies its own)"
    )
    tensors: TritonTensors = TritonTensors()


class Gpu(Section):
    """The accelerators of one replica; `type` selects priors from config/gpus.yaml, unknown types take neutral ones."""

    type: str = "unknown"
    count: PositiveInt = 1


class Cost(Section):
    """What one replica costs per hour, all its GPUs together, in US dollars."""

    tier: CostTier = CostTier.ON_DEMAND
    usd_per_hour: NonNegativeFloat = 0.0
    on_demand_usd_per_hour: NonNegativeFloat | None = Field(
        None,
        description="the same machine's price on demand, to show what its tier saves; null: usd_per_hour where the tier is on_demand, "
        "else that of an on-demand replica with as many of the same GPUs",
    )


class Capacity(Section):
    """The engine's own limits. Declared here wins; else the engine is asked; else they are learned from its behaviour."""

    max_num_seqs: PositiveInt | None = None
    max_num_batched_tokens: PositiveInt | None = None
    kv_blocks: PositiveInt | None = None
    block_size: PositiveInt | None = None
    max_model_len: PositiveInt | None = None


class SimulatedEngine(Section):
    """What a simulated replica runs; ignored by real ones."""

    speed: PositiveFloat = Field(1.0, description="2 runs twice as fast as the GPU it models")
    seed: NonNegativeInt = 0
    shape: ShapeName = Field(
        "8b", description="the model's size: parameters, layers and KV bytes a token, of Llama 3.1"
    )
    tensor_parallel: PositiveInt | None = Field(None, description="default: gpu.count / pipeline_parallel")
    pipeline_parallel: PositiveInt = Field(1, description="stages; times tensor_parallel it is gpu.count")
    memory_ratio: float = Field(MEMORY_RATIO, gt=0, le=1, description="of GPU memory, as vLLM's gpu_memory_utilization")
    speculative_tokens: int = Field(0, ge=0, le=32, description="drafted in each decode step of a sequence")
    speculative_acceptance: float = Field(
        0.7, ge=0, le=1, description="chance that a draft is right, if those before it are"
    )


class KvEvents(Section):
    """Where a vLLM started with `--kv-events-config` publishes what its prefix cache holds (docs/kv-events.md)."""

    endpoint: str = Field(description="the engine's `endpoint` as seen from here: tcp://host:5557")
    replay_endpoint: str | None = Field(
        None, description="its `replay_endpoint`: what was missed is asked for; without one, a gap forgets everything"
    )
    topic: str = Field("", description="its `topic`; empty: all")


ReplicaName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]


class ReplicaConfig(Section):
    """One engine endpoint."""

    name: ReplicaName
    backend: BackendKind = BackendKind.VLLM
    url: str | None = Field(
        None, description="http(s)://host:port, unix:///path, or grpc://host:port for triton; none for simulated"
    )
    models: tuple[ModelSpec, ...] = Field(
        (), description="names or {name, kind}; empty: the engine is asked (GET /v1/models)"
    )
    gpu: Gpu = Gpu()
    cost: Cost = Cost()
    capacity: Capacity = Capacity()
    metrics_url: str | None = Field(
        None, description="where an engine's metrics live apart (Triton: http://host:8002/metrics)"
    )
    api_key: str | None = Field(
        None,
        repr=False,
        description="sent upstream as a bearer token; `env:NAME` or `file:/path` keep it out of this file",
    )
    priority_scheduling: bool = Field(
        False,
        description="the engine runs with `--scheduling-policy priority`; else a body's `priority` is never sent on",
    )
    simulated: SimulatedEngine = SimulatedEngine()
    kv_events: KvEvents | None = Field(None, description="off by default; vllm only")

    @model_validator(mode="before")
    @classmethod
    def _models_may_be_names(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("models"), list | tuple):
            models = [{"name": m} if isinstance(m, str) else m for m in data["models"]]
            return {**data, "models": models}
        return data

    @model_validator(mode="after")
    def _no_contradiction(self) -> Self:
        problems = list(replica_problems(self))
        if problems:
            raise refusal("replica", problems)
        return self
