"""What a source of replicas says: each replica as it would stand in the configuration, and whether its machine is about to go.

Sources name what they see and judge nothing: which of two with one name counts, and what a notice does, is the router's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pydantic import ValidationError

from config.discovery import Template
from config.replica import BackendKind, ReplicaConfig


@dataclass(frozen=True, slots=True)
class Warned:
    """A machine is about to go; `kind` as in notices: rebalance, reclaim, maintenance."""

    kind: str
    id: str  # the same for as long as it is the same event
    within_s: float | None = None  # from when it was first seen; None: nobody knows


@dataclass(frozen=True, slots=True)
class Found:
    """One engine endpoint."""

    replica: ReplicaConfig
    warned: Warned | None = None


Tell = Callable[[Sequence[Found]], None]


class Source(Protocol):
    """One place to look."""

    @property
    def name(self) -> str:
        """For logs and metrics, such as `dns:vllm.example.com`."""
        ...

    async def run(self, tell: Tell) -> None:
        """Until cancelled: all that is there, at once and after each change. While nothing can be learned, nothing is told."""
        ...


class NotFit(Exception):
    """What was found makes no replica; the text says why."""


def replica_at(name: str, host: str, port: int, template: Template) -> ReplicaConfig:
    """The replica of an address. Raises NotFit."""
    said = template.model_dump(exclude={"metrics_port", "tls"}, exclude_unset=True)
    shown = f"[{host}]" if ":" in host else host
    triton = template.backend is BackendKind.TRITON
    scheme = ("grpc" if triton else "http") + ("s" if template.tls else "")
    if template.metrics_port is not None:
        said["metrics_url"] = f"http://{shown}:{template.metrics_port}/metrics"
    try:
        return ReplicaConfig.model_validate({"name": name, "url": f"{scheme}://{shown}:{port}", **said})
    except ValidationError as error:
        raise NotFit("; ".join(one["msg"] for one in error.errors())) from None


def name_of(prefix: str, address: str) -> str:
    """A replica's name from an address: `h100-10-0-0-7`, the same for the same address."""
    tail = "".join(character if character.isalnum() else "-" for character in address).strip("-")
    return f"{prefix}-{tail}"[-63:].lstrip("-._")
