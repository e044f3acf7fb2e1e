"""Kubernetes EndpointSlices, and the nodes below them, as replicas (pure: objects as the API's JSON has them).

One endpoint is one replica, called after its pod. Endpoints that are not ready yet are replicas, too: they are looked at until they are.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from backends.discovery.found import Found, NotFit, Warned, name_of, replica_at
from backends.discovery.nodes import warned, with_labels
from config.discovery import Kubernetes

Object = Mapping[str, Any]


class Seen(NamedTuple):
    """What the objects come to; `problems` for the log, once each."""

    found: tuple[Found, ...]
    problems: frozenset[str]


def found_in(slices: Iterable[Object], nodes: Mapping[str, Object], source: Kubernetes) -> Seen:
    """All replicas, by name; of a pod in two slices (IPv4 and IPv6, or on its way from one to the other) the first counts."""
    found: dict[str, Found] = {}
    problems: set[str] = set()
    for piece in sorted(slices, key=_name):
        port = _port(piece, source.port)
        for endpoint in piece.get("endpoints") or ():
            if not endpoint.get("addresses"):
                continue
            if port is None:
                problems.add(f"EndpointSlice {_name(piece)} has no port {source.port}; it has {_ports(piece)}")
                break
            name = _replica_name(endpoint, source)
            node = nodes.get(endpoint.get("nodeName") or "")
            template, wrong = with_labels(source.replica, (node or {}).get("metadata", {}).get("labels") or {})
            problems.update(f"node {endpoint.get('nodeName')}: {label} is not understood" for label in wrong)
            try:
                replica = replica_at(name, endpoint["addresses"][0], port, template)
            except NotFit as error:
                problems.add(f"endpoint {name}: {error}")
                continue
            found.setdefault(name, Found(replica, _warned(endpoint, name, node, source)))
    return Seen(tuple(found[name] for name in sorted(found)), frozenset(problems))


def _warned(endpoint: Object, name: str, node: Object | None, source: Kubernetes) -> Warned | None:
    """By the pod's own end, or by its node's."""
    if (endpoint.get("conditions") or {}).get("terminating"):
        uid = (endpoint.get("targetRef") or {}).get("uid", name)
        return Warned("reclaim", f"{uid}/terminating", source.termination_grace_s)
    if node is None:
        return None
    return warned((node.get("spec") or {}).get("taints") or (), _name(node), source.notice_s)


def _replica_name(endpoint: Object, source: Kubernetes) -> str:
    pod, node = (endpoint.get("targetRef") or {}).get("name"), endpoint.get("nodeName")
    told = node if source.named_by == "node" else pod
    if not told:
        return name_of(source.prefix or "replica", endpoint["addresses"][0])
    return f"{source.prefix}-{told}"[-63:].lstrip("-._") if source.prefix else str(told)[-63:].lstrip("-._")


def _port(piece: Object, wanted: str | int | None) -> int | None:
    """The slice's port of that name or number; the first where none is wanted."""
    for port in piece.get("ports") or ():
        number = port.get("port")
        if number is not None and wanted in (None, number, port.get("name")):
            return int(number)
    return None


def _ports(piece: Object) -> str:
    return ", ".join(f"{port.get('name') or '-'}={port.get('port')}" for port in piece.get("ports") or ()) or "none"


def _name(thing: Object) -> str:
    return str((thing.get("metadata") or {}).get("name", ""))
