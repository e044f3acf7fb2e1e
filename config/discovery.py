"""The section `discovery`: where replicas come from beside the file's own list (docs/discovery.md)."""

from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from config.checks import refusal
from config.replica import BackendKind, Capacity, Cost, Gpu, ModelSpec
from config.section import Section

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,30}$"  # an address or a pod's name is put behind it


class Template(Section):
    """What each discovered replica is. What is left out of `gpu` and `cost` Kubernetes' node labels may tell."""

    backend: BackendKind = BackendKind.VLLM
    models: tuple[ModelSpec, ...] = Field((), description="as of a replica; empty: the engine is asked")
    gpu: Gpu = Gpu()
    cost: Cost = Cost()
    capacity: Capacity = Capacity()
    metrics_port: int | None = Field(None, ge=1, le=65535, description="Triton's, where metrics live apart")
    kv_events_port: int | None = Field(None, ge=1, le=65535, description="where each vLLM publishes its KV events")
    kv_replay_port: int | None = Field(None, ge=1, le=65535, description="... and tells what was missed")
    api_key: str | None = Field(None, repr=False, description="`env:NAME` or `file:/path`; sent upstream")
    priority_scheduling: bool = False
    tls: bool = Field(False, description="https, or grpcs for triton")

    @model_validator(mode="before")
    @classmethod
    def _models_may_be_names(cls, data: object) -> object:
        if isinstance(data, dict) and isinstance(data.get("models"), list | tuple):
            models = [{"name": m} if isinstance(m, str) else m for m in data["models"]]
            return {**data, "models": models}
        return data

    @model_validator(mode="after")
    def _can_be_found(self) -> Self:
        if self.backend is BackendKind.SIMULATED:
            raise refusal("replica", [(("backend",), "a simulated replica has no address to be found at")])
        if self.kv_events_port is None and self.kv_replay_port is not None:
            raise refusal("replica", [(("kv_events_port",), "missing, and kv_replay_port given")])
        if self.backend is BackendKind.TRITON and not self.models:
            raise refusal("replica", [(("models",), "empty; a triton replica must name them")])
        return self


class Dns(Section):
    """Every address behind a name is a replica."""

    prefix: str = Field("dns", pattern=_NAME, description="replicas are called PREFIX-ADDRESS")
    name: str = Field(min_length=1, description="a host name, or with `srv` a service's: _http._tcp.vllm.example.com")
    port: int | None = Field(None, ge=1, le=65535, description="of every address; null with `srv`, which tells them")
    srv: bool = Field(False, description="ask for SRV records instead of A and AAAA")
    nameservers: tuple[str, ...] = Field((), description="ADDRESS or ADDRESS:PORT; empty: the system's")
    interval_s: PositiveFloat = Field(5.0, description="between two looks, whatever the records' TTL")
    empty_after: PositiveInt = Field(3, description="looks in a row that find nothing until nothing is believed")
    replica: Template = Template()

    @model_validator(mode="after")
    def _port_from_one_place(self) -> Self:
        if self.srv == (self.port is not None):
            what = "SRV records tell it; remove it" if self.srv else "missing; give the engines' port, or srv: true"
            raise refusal("dns", [(("port",), what)])
        return self


class Kubernetes(Section):
    """Every endpoint of a Service is a replica; its node's labels and taints tell GPU, price and notices."""

    prefix: str = Field("", description="before the pods' names; empty: they are the replicas' names")
    named_by: Literal["pod", "node"] = Field(
        "pod", description="node: where each has one engine, and an agent on it knows the node's name only"
    )
    namespace: str | None = Field(None, description="null: the gateway's own")
    service: str | None = Field(None, description="a Service's name")
    selector: str | None = Field(None, description="of EndpointSlices by label, instead of a Service's name")
    port: str | int | None = Field(None, description="name or number among the slice's; null: the first")
    nodes: bool = Field(
        True, description="watch Nodes: their labels and taints; needs a ClusterRole (get, list, watch)"
    )
    termination_grace_s: NonNegativeFloat = Field(
        30.0, description="from a pod's `terminating` to its end: terminationGracePeriodSeconds of the engines"
    )
    notice_s: NonNegativeFloat = Field(
        120.0, description="from a spot taint to the machine's end: AWS 120; GCP and Azure give 30"
    )
    api_url: str | None = Field(None, description="null: the cluster that the gateway runs in, else the kubeconfig's")
    kubeconfig: Path | None = None
    context: str | None = None
    replica: Template = Template()

    @model_validator(mode="after")
    def _one_way_to_find(self) -> Self:
        if (self.service is None) == (self.selector is None):
            raise refusal("kubernetes", [(("service",), "give `service` or `selector`, one of the two")])
        return self


class Registration(Section):
    """Engines that say themselves that they are there: PUT /admin/registrations/NAME."""

    enabled: bool = False
    ttl_s: PositiveFloat = Field(30.0, description="a registration that is not renewed in time is over")
    most: PositiveInt = Field(1000, description="registrations at a time")


class Discovery(Section):
    """All sources add up; a replica of the file's own list wins over one of the same name or address."""

    dns: tuple[Dns, ...] = ()
    kubernetes: tuple[Kubernetes, ...] = ()
    registration: Registration = Registration()

    @model_validator(mode="after")
    def _can_look(self) -> Self:
        wanted = (("dns", self.dns, "dns"), ("kubernetes", self.kubernetes, "kubernetes_asyncio"))
        missing = [name for name, used, module in wanted if used and find_spec(module) is None]
        if missing:
            what = "needs a package that is not installed; pip install 'penstock[discovery]'"
            raise refusal("discovery", [((name,), what) for name in missing])
        return self

    @property
    def is_on(self) -> bool:
        return bool(self.dns or self.kubernetes or self.registration.enabled)
