"""Every setting, parsed once into frozen values: units in the names, unknown keys refused, nonsense named by key path.

Decides what may be said in a config file; reads neither files nor the environment (`config.load` does).
"""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from config.checks import OWN_POLICY, fleet_problems, origin_problems, policy_problems, refusal, replica_problems
from config.gpus import MEMORY_RATIO, ShapeName


class Section(BaseModel):
    """A frozen part of the configuration; a key it does not know is an error."""

    # Inputs stay out of error texts because they may be secrets; `config.problems` shows those that are not.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


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


class Mechanism(StrEnum):
    """What the scheduler does beyond first come first served; each can be switched off to see what it is worth."""

    SPEED = "speed"  # GPU types and sizes are told apart
    ATTENTION = "attention"  # prefill time grows with the square of the prompt
    DEADLINES = "deadlines"  # who must have its first token soonest goes first
    LATE_LAST = "late_last"  # who cannot meet its objective any more yields to those who can
    HOLD = "hold"  # a request waits for a replica that will meet its objective instead of taking one that will not
    LATE_BINDING = "late_binding"  # requests wait here, not in the engines
    ITL_GUARD = "itl_guard"  # prefill waits while streams have no time to spare
    KV_FORECAST = "kv_forecast"  # the sum of all growth is forecast, not each request's worst case
    PREFIX = "prefix"  # cached prefixes count as prefill saved
    PREFIX_HOLD = "prefix_hold"  # a request waits for the replica that holds its beginning, where that is worth it
    COST = "cost"  # the cheapest replica that will do, not the fastest
    AUDIT = "audit"  # what was learned loses weight where it does worse than not learning
    SPARING = "sparing"  # batch leaves replicas free of its prompts, as many as those who are watched need
    FLOORS = "floors"  # a guaranteed share for those whom strict order would starve
    EARLY_REFUSAL = "early_refusal"  # who cannot be answered in time is refused at once, and told when it can


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


Share = Annotated[float, Field(ge=0, le=0.5)]
TierShare = Annotated[float, Field(gt=0, le=1)]


class Floors(Section):
    """Shares of the prompt tokens placed that a class gets while it waits, however much goes before it; the rest is strict order."""

    default: Share = 0.1
    flex: Share = 0.05
    late: Share = Field(0.05, description="requests that cannot meet their objective any more, of all tiers but batch")
    batch: Share = 0.05


class TierShares(Section):
    """Of each bound of the queue, how much a service tier may fill: what is deferred must not leave the others without a place."""

    priority: TierShare = 1.0
    default: TierShare = 1.0
    flex: TierShare = 0.5
    batch: TierShare = 0.5


class Queue(Section):
    """Bounds of the gateway's queue and how long a request may wait in it."""

    max_requests: PositiveInt = Field(
        5000, description="beyond it the lowest tier makes way, else a request gets 503 with Retry-After"
    )
    max_bytes: PositiveInt = Field(2**30, description="bodies held while queued")
    max_tokens: PositiveInt = Field(50_000_000, description="prompt tokens held while queued")
    max_wait_s: PositiveFloat = Field(30.0, description="then 503 with Retry-After")
    aging_s: PositiveFloat = Field(10.0, description="waiting so long lifts a request by one service tier; not batch")
    floors: Floors = Floors()
    tier_shares: TierShares = TierShares()


class Objectives(Section):
    """What placement tries to keep. TTFT grows with the prompt: base + per-token part beyond 1,000 tokens."""

    ttft_s: PositiveFloat = 1.0
    ttft_s_per_prompt_token: NonNegativeFloat = Field(0.001, description="for each prompt token beyond 1,000")
    tpot_s: PositiveFloat = 0.1


class Hedge(Section):
    """A second replica is asked where the first keeps a request waiting for its first token far longer than predicted."""

    enabled: bool = True
    after_ratio: float = Field(
        3.0, ge=1, description="times the predicted first token; more where predictions have been wrong"
    )
    floor_s: PositiveFloat = Field(0.5, description="never sooner")


class Scheduling(Section):
    """The scheduler's knobs; each default has its reason beside it."""

    kv_watermark_ratio: float = Field(
        0.02, ge=0, lt=1, description="KV blocks kept free for growth that was not forecast"
    )
    kv_forecast_quantile: float = Field(
        0.95, gt=0, le=1, description="of the learned output length that a lease reserves"
    )
    prefill_chunks: PositiveFloat = Field(
        2.0, description="unprefilled tokens admitted, in units of max_num_batched_tokens"
    )
    bypass_limit: PositiveInt = Field(16, description="how many waiting requests one pass may look past")
    head_protection_s: PositiveFloat = Field(
        0.3, description="a head passed over for so long gets a replica reserved for it; by another tenant: at once"
    )
    objectives: Objectives = Objectives()
    retry_budget_ratio: float = Field(
        0.1, ge=0, le=1, description="of all requests that may be sent twice, hedged or repeated, over the whole fleet"
    )
    hedge: Hedge = Hedge()
    policy: str = Field(
        OWN_POLICY,
        description="`penstock`, or another router's rule to compare with: round_robin, least_requests, ... (docs/baselines.md)",
    )
    without: frozenset[Mechanism] = Field(
        frozenset(), description="mechanisms switched off, to measure what they are worth (docs/benchmarks.md)"
    )

    @model_validator(mode="before")
    @classmethod
    def _budget_where_it_was(cls, data: object) -> object:
        """`hedge.budget_ratio` is what it was called while hedges alone took from it; the present name wins."""
        if isinstance(data, dict) and isinstance(hedge := data.get("hedge"), dict) and "budget_ratio" in hedge:
            rest = {name: value for name, value in hedge.items() if name != "budget_ratio"}
            return {"retry_budget_ratio": hedge["budget_ratio"], **data, "hedge": rest}
        return data

    @field_validator("policy")
    @classmethod
    def _policy_that_there_is(cls, policy: str) -> str:
        problems = list(policy_problems(policy))
        if problems:
            raise refusal("policy", problems)
        return policy


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
    probe: Probe = Probe()
    microbatch: MicroBatch = MicroBatch()
    decisions: Decisions = Decisions()
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @model_validator(mode="after")
    def _replicas_fit_together(self) -> Self:
        problems = list(fleet_problems(self.replicas))
        if problems:
            raise refusal("configuration", problems)
        return self
