"""A Service's endpoints as replicas, watched through the Kubernetes API, with what their nodes say of them."""

import asyncio
import logging
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from backends.discovery.found import Found, Tell
from backends.discovery.reflector import Reflector
from backends.discovery.slices import found_in
from config.discovery import Kubernetes

if TYPE_CHECKING:
    from kubernetes_asyncio.client import ApiClient

log = logging.getLogger("penstock.discovery")

_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_OF_SERVICE: Final = "kubernetes.io/service-name"
_NODES_S: Final = 5.0  # else each replica would be built twice: without its node's labels, and with them
_SETTLE_S: Final = 0.05  # a rollout changes many objects at once


class KubernetesSource:
    """`run` until cancelled."""

    def __init__(self, config: Kubernetes) -> None:
        self.name = f"kubernetes:{config.service or config.selector}"
        self._config = config
        self._changed = asyncio.Event()
        self._problems: frozenset[str] = frozenset()

    async def run(self, tell: Tell) -> None:
        """Raises what kubernetes_asyncio raises where there is no cluster to be had."""
        from kubernetes_asyncio.client import CoreV1Api, DiscoveryV1Api  # noqa: PLC0415 - an extra

        namespace = self._config.namespace or _own_namespace()
        selector = self._config.selector or f"{_OF_SERVICE}={self._config.service}"
        async with await _client(self._config) as client:
            slices = Reflector(
                f"EndpointSlices of {namespace} with {selector}",
                partial(DiscoveryV1Api(client).list_namespaced_endpoint_slice, namespace, label_selector=selector),
                self._changed.set,
            )
            nodes = Reflector("Nodes", CoreV1Api(client).list_node, self._changed.set)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(slices.run(), name=self.name)
                if self._config.nodes:
                    tasks.create_task(nodes.run(), name=f"{self.name}-nodes")
                await self._tell_changes(slices, nodes, tell)

    async def _tell_changes(self, slices: Reflector, nodes: Reflector, tell: Tell) -> None:
        """Nodes that cannot be read are not waited for longer than a little: the engines are there all the same."""
        told: tuple[Found, ...] | None = None
        if self._config.nodes:
            with suppress(TimeoutError):
                async with asyncio.timeout(_NODES_S):
                    await nodes.listed.wait()
        while True:
            await self._changed.wait()
            await asyncio.sleep(_SETTLE_S)
            self._changed.clear()
            if not slices.listed.is_set():
                continue
            by_name = {name: node for (_, name), node in nodes.objects.items()}
            seen = found_in(slices.objects.values(), by_name, self._config)
            for problem in sorted(seen.problems - self._problems):
                log.warning("%s: %s", self.name, problem)
            self._problems = seen.problems
            if seen.found != told:
                told = seen.found
                tell(told)


def _own_namespace() -> str:
    try:
        return _NAMESPACE_FILE.read_text().strip() or "default"
    except OSError:
        return "default"


async def _client(config: Kubernetes) -> "ApiClient":
    """The cluster that was named, else the one that this runs in, else the kubeconfig's."""
    from kubernetes_asyncio.client import ApiClient, Configuration  # noqa: PLC0415 - an extra
    from kubernetes_asyncio.config import load_incluster_config, load_kube_config  # noqa: PLC0415

    settings: Any = Configuration()
    if config.api_url is not None:
        settings.host = config.api_url
    elif config.kubeconfig is None and config.context is None and _NAMESPACE_FILE.exists():
        load_incluster_config(client_configuration=settings)  # type: ignore[no-untyped-call]
    else:
        path = None if config.kubeconfig is None else str(config.kubeconfig)
        await load_kube_config(config_file=path, context=config.context, client_configuration=settings)
    return ApiClient(configuration=settings)
