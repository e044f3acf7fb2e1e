"""What a source of replicas says: each replica as it would stand in the configuration, and whether its machine is about to go.

Sources name what they see and judge nothing: which of two with one name counts, and what a notice does, is the router's.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final, Protocol
from urllib.parse import urlsplit

from pydantic import ValidationError

from config.discovery import Template
from config.replica import BackendKind, ReplicaConfig

# AWS by IPv6, Google by name, Alibaba; by IPv4 all others are at a link-local address.
_METADATA_NAMES: Final = frozenset({"metadata.google.internal", "metadata", "fd00:ec2::254", "100.100.100.200"})


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


def refuse_host(url: str) -> None:
    """Raises NotFit where no engine can be, and what hands out credentials is: clouds' metadata services, and this machine's any."""
    host = (urlsplit(url).hostname or "").rstrip(".")
    try:
        address = ip_address(host)
    except ValueError:
        if host in _METADATA_NAMES:
            raise NotFit(f"{host} is a cloud's metadata service, no engine") from None
        return
    if address.is_link_local or address.is_multicast or address.is_unspecified or str(address) in _METADATA_NAMES:
        raise NotFit(
            f"{address} is no address of an engine (link-local, multicast, unspecified, or a metadata service)"
        )


def replica_at(name: str, host: str, port: int, template: Template) -> ReplicaConfig:
    """The replica of an address. Raises NotFit."""
    said = template.model_dump(exclude={"metrics_port", "kv_events_port", "kv_replay_port", "tls"}, exclude_unset=True)
    shown = f"[{host}]" if ":" in host else host
    triton = template.backend is BackendKind.TRITON
    scheme = ("grpc" if triton else "http") + ("s" if template.tls else "")
    if template.metrics_port is not None:
        said["metrics_url"] = f"http://{shown}:{template.metrics_port}/metrics"
    if template.kv_events_port is not None:
        replay = template.kv_replay_port
        said["kv_events"] = {
            "endpoint": f"tcp://{shown}:{template.kv_events_port}",
            "replay_endpoint": None if replay is None else f"tcp://{shown}:{replay}",
        }
    refuse_host(url := f"{scheme}://{shown}:{port}")
    try:
        return ReplicaConfig.model_validate({"name": name, "url": url, **said})
    except ValidationError as error:
        raise NotFit("; ".join(one["msg"] for one in error.errors())) from None


def name_of(prefix: str, address: str) -> str:
    """A replica's name from an address: `h100-10-0-0-7`, the same for the same address."""
    tail = "".join(character if character.isalnum() else "-" for character in address).strip("-")
    return f"{prefix}-{tail}"[-63:].lstrip("-._")
