"""Every setting, parsed once into frozen values: units in the names, unknown keys refused, nonsense named by key path.

Decides what may be said in a config file; reads neither files nor the environment (`config.load` does).
"""

from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from config.checks import fleet_problems, good_admin_key, origin_problems, refusal
from config.discovery import Discovery
from config.health import Health
from config.migration import Migration
from config.oidc import AdminOidc
from config.replica import (
    BackendKind,
    Capacity,
    Cost,
    CostTier,
    Gpu,
    KvEvents,
    ModelKind,
    ModelSpec,
    ReplicaConfig,
    ReplicaName,
    SimulatedEngine,
    TritonTensors,
)
from config.scheduling import Floors, Hedge, Mechanism, Objectives, Queue, Scheduling, TierShares
from config.section import Section
from config.shared import SharedRedis
from config.spot import Spot
from config.tenants import Auth, Tenant, tenancy_problems
from config.tracing import Tracing
from config.usage import Usage

# Of other modules' names those that belong to the schema, for whoever reads it here.
__all__ = [
    "BackendKind",
    "Capacity",
    "Cost",
    "CostTier",
    "Floors",
    "Gpu",
    "Hedge",
    "KvEvents",
    "Mechanism",
    "ModelKind",
    "ModelSpec",
    "Objectives",
    "Queue",
    "ReplicaConfig",
    "ReplicaName",
    "Scheduling",
    "Section",
    "SimulatedEngine",
    "TierShares",
    "TritonTensors",
]


class DataPlane(StrEnum):
    """What carries hot requests between a client's connection and their handler."""

    WIRE = "wire"  # the connection itself
    ASGI = "asgi"  # the ASGI interface: slower, and independent of the server's internals


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
    admin_host: str = Field("127.0.0.1", min_length=1, description="of the admin's own listener, if admin_port is set")
    admin_port: int | None = Field(
        None,
        ge=0,
        le=65535,
        description="/admin and the board are there, and not at `port`; 0: any free one; null: both at `port`",
    )
    admin_oidc: AdminOidc = AdminOidc()
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

    @model_validator(mode="after")
    def _two_ports(self) -> Self:
        if self.admin_port and self.admin_port == self.port:
            text = "the same as `port`; choose another, or null for no listener of the admin's own"
            raise refusal("server", [(("admin_port",), text)])
        return self


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
    discovery: Discovery = Discovery()
    queue: Queue = Queue()
    scheduling: Scheduling = Scheduling()
    upstream: Upstream = Upstream()
    migration: Migration = Migration()
    probe: Probe = Probe()
    health: Health = Health()
    spot: Spot = Spot()
    microbatch: MicroBatch = MicroBatch()
    decisions: Decisions = Decisions()
    usage: Usage = Usage()
    tracing: Tracing = Tracing()
    auth: Auth = Auth()
    tenants: tuple[Tenant, ...] = ()
    redis: SharedRedis = SharedRedis()
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["text", "json"] = Field("text", description="json: one object a line, tracebacks included")

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Self:
        problems = [*fleet_problems(self.replicas), *tenancy_problems(self.auth, self.tenants)]
        if self.redis.enabled and self.redis.settle_s < self.probe.interval_s:
            text = f"{self.redis.settle_s:g} is less than probe.interval_s, {self.probe.interval_s:g}: nobody would have seen what still runs"
            problems.append((("redis", "settle_s"), text))
        if problems:
            raise refusal("configuration", problems)
        return self
