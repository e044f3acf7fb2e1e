"""Every setting, parsed once into frozen values: units in the names, unknown keys refused, nonsense named by key path.

Decides what may be said in a config file; reads neither files nor the environment (`config.load` does).
"""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from config.checks import fleet_problems, good_admin_key, origin_problems, refusal, replica_problems
from config.gpus import MEMORY_RATIO, ShapeName
from config.health import Health
from config.migration import Migration
from config.scheduling import Floors, Hedge, Mechanism, Objectives, Queue, Scheduling, TierShares
from config.section import Section
from config.shared import SharedRedis
from config.spot import Spot

# Of other modules' names those that belong to the schema, for whoever reads it here.
__all__ = ["Floors", "Hedge", "Mechanism", "Objectives", "Queue", "Scheduling", "Section", "TierShares"]


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


class DataPlane(StrEnum):
    """What carries hot requests between a client's connection and their handler."""

    WIRE = "wire"  # the connection itself
    ASGI = "asgi"  # the ASGI interface: slower, and independent of the server's internals


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


class Server(Section):
    """The front door's own limits. Seconds and bytes."""

    host: str = Field("127.0.0.1", min_length=1, description="0.0.0.0 or :: for all interfaces")
    port: int = Field(8080, ge=0, le=65535, description="0 lets the system choose")
    workers: int = Field(1, ge=1, le=256, description="processes that share the port (docs/workers.md); one a core")
    max_body_bytes: PositiveInt = Field(16 * 2**20, description="larger bodies get 413")
    max_held_body_bytes: PositiveInt = Field(
        2 * 2**30, description="of all bodies together, from their first byte to their answer's end; beyond it 503"
    )
    max_json_depth: PositiveInt = 64
    header_timeout_s: PositiveFloat = Field(
        10.0, description="a client that has not sent its whole head by then gets 408"
    )
    body_timeout_s: PositiveFloat = Field(30.0, description="... its whole body, 408")
    write_stall_timeout_s: PositiveFloat = Field(60.0, description="a client that reads nothing for so long is cut")
    total_timeout_s: PositiveFloat | None = Field(
        None, description="a request's whole life, queue and answer; null: no such limit"
    )
    keepalive_comment_s: PositiveFloat = Field(
        15.0, description="SSE comment to a silent stream, so that no proxy cuts it"
    )
    drain_timeout_s: NonNegativeFloat = Field(120.0, description="after SIGTERM, running streams may go on for so long")
    data_plane: DataPlane = Field(
        DataPlane.WIRE, description="asgi: slower, for when a release of the HTTP server breaks the default"
    )
    cors_origins: tuple[str, ...] = Field((), description="browser origins allowed; empty: CORS off")
    admin_key: Annotated[str, AfterValidator(good_admin_key)] | None = Field(
        None,
        repr=False,
        description="asked of whoever calls /admin, from anywhere; null: only this machine may. `env:NAME` or `file:/path`",
    )
    trusted: bool = Field(
        False, description="pass on the request fields that are stripped for strangers (see docs/api.md)"
    )

    @field_validator("cors_origins")
    @classmethod
    def _origins_as_browsers_send_them(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        problems = list(origin_problems(origins))
        if problems:
            raise refusal("cors_origins", problems)
        return origins


class Upstream(Section):
    """Timeouts and retries towards engines. Seconds."""

    connect_timeout_s: PositiveFloat = 2.0
    first_byte_timeout_s: PositiveFloat = Field(300.0, description="for the answer's first byte, prefill included")
    stall_timeout_s: PositiveFloat = Field(60.0, description="between two chunks of a stream")
    attempts: PositiveInt = Field(3, description="replicas tried before the first byte reaches the client")
    max_idle_connections: PositiveInt = Field(256, description="kept alive per replica")
    buffer_bytes: PositiveInt = Field(256 * 1024, description="held per stream for a client that reads slowly")


class Probe(Section):
    """How engines are watched. Seconds."""

    interval_s: PositiveFloat = 1.0
    timeout_s: PositiveFloat = 2.0
    unhealthy_after: PositiveInt = Field(3, description="failed probes in a row until a replica is down")
    stale_after_s: PositiveFloat = Field(
        10.0, description="older figures are ignored, the gateway's own ledger is used"
    )


class MicroBatch(Section):
    """When a batch of embedding inputs for a Triton model closes: whichever comes first."""

    max_tokens: PositiveInt = 8192
    max_size: PositiveInt = 32
    max_age_s: PositiveFloat = 0.005


class Decisions(Section):
    """The ledger of placements: what was asked, what each candidate offered, what came of it. No prompts, no answers (docs/decisions-ledger.md)."""

    ring: int = Field(4096, ge=0, le=1_000_000, description="placements kept in memory, for /admin/decisions; 0: none")
    file: str | None = Field(
        None, min_length=1, description="JSON lines, for `penstock replay` and `penstock explain --file`; null: none"
    )
    candidates: int = Field(32, ge=2, le=1024, description="kept of each placement; of more, the likeliest")


class Config(Section):
    """The whole configuration; `penstock schema` prints it as JSON Schema."""

    server: Server = Server()
    replicas: tuple[ReplicaConfig, ...] = ()
    queue: Queue = Queue()
    scheduling: Scheduling = Scheduling()
    upstream: Upstream = Upstream()
    migration: Migration = Migration()
    probe: Probe = Probe()
    health: Health = Health()
    spot: Spot = Spot()
    microbatch: MicroBatch = MicroBatch()
    decisions: Decisions = Decisions()
    redis: SharedRedis = SharedRedis()
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        problems = list(fleet_problems(self.replicas))
        if self.redis.enabled and self.redis.settle_s < self.probe.interval_s:
            text = f"{self.redis.settle_s:g} is less than probe.interval_s, {self.probe.interval_s:g}: nobody would have seen what still runs"
            problems.append((("redis", "settle_s"), text))
        if problems:
            raise refusal("configuration", problems)
        return self
