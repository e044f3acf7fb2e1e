"""`penstock serve` whose replicas are discovered: pods that come, are tainted and go, and engines that call in."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.support.asgi import chat
from tests.support.fake_kubernetes import NODES, SLICES, FakeKubernetes, endpoint, endpoint_slice, node
from tests.support.gateway_process import serving
from tests.support.patience import PATIENCE_S
from tests.support.raw_http import ask, get, head, post
from tests.support.two_workers import engine as simulated_engine


def told(method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    return head(method, path, f"content-length: {len(data)}") + data


def write(folder: Path, discovery: dict[str, Any]) -> Path:
    path = folder / "penstock.yaml"
    path.write_text(json.dumps({"discovery": discovery, "probe": {"interval_s": 0.1}}))
    return path


async def replicas(url: str) -> dict[str, dict[str, Any]]:
    answer = await ask(url, get("/admin/replicas"))
    return {one["name"]: one for one in answer.json()["data"]}


async def until_replicas(url: str, **lifecycles: str) -> dict[str, dict[str, Any]]:
    """Names with `_` for `-`."""
    wanted = {name.replace("_", "-"): lifecycle for name, lifecycle in lifecycles.items()}
    found = await replicas(url)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while {name: one["lifecycle"] for name, one in found.items()} != wanted:
                await asyncio.sleep(0.05)
                found = await replicas(url)
    except TimeoutError:
        raise AssertionError(f"wanted {wanted}, there are {found}") from None
    return found


def pods(service: str, node_name: str, **urls: str) -> list[dict[str, Any]]:
    """A slice for each, as each engine of the test has a port of its own."""
    return [
        endpoint_slice(
            f"s-{pod}", service, endpoint("127.0.0.1", pod.replace("_", "-"), node_name), port=urlsplit(url).port or 0
        )
        for pod, url in urls.items()
    ]


async def test_pods_are_served_noticed_and_let_go(tmp_path: Path):
    """From a Service: asked for their models, placed on, emptied by a taint, taken back, and gone with their slice."""
    async with FakeKubernetes() as api, simulated_engine() as first, simulated_engine() as second:
        api.put(
            NODES, node("n1", {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "cloud.google.com/gke-spot": "true"})
        )
        (a,), (b,) = pods("vllm", "n1", pod_a=first), pods("vllm", "", pod_b=second)
        api.put(SLICES, a)
        config = write(tmp_path, {"kubernetes": [{"service": "vllm", "namespace": "default", "api_url": api.url}]})
        async with serving(config) as gateway:
            found = await until_replicas(gateway.url, pod_a="ready")
            assert (found["pod-a"]["gpu"], found["pod-a"]["cost_tier"]) == ("H100-80G", "spot")
            answer = await ask(gateway.url, post("/v1/chat/completions", chat(model="m")))
            assert (answer.status, answer.headers["x-penstock-replica"]) == (200, "pod-a")
            api.put(SLICES, b)
            await until_replicas(gateway.url, pod_a="ready", pod_b="ready")
            api.put(
                NODES, node("n1", {"cloud.google.com/gke-spot": "true"}, "cloud.google.com/impending-node-termination")
            )
            found = await until_replicas(gateway.url, pod_a="reclaiming", pod_b="ready")
            assert found["pod-a"]["released"]
            assert found["pod-a"]["deadline_unix_s"] is not None
            api.put(NODES, node("n1", {"cloud.google.com/gke-spot": "true"}))
            await until_replicas(gateway.url, pod_a="ready", pod_b="ready")
            api.delete(SLICES, "s-pod_a")
            await until_replicas(gateway.url, pod_b="ready")
            assert (
                'penstock_discovered_replicas{source="kubernetes:vllm"} 1.0'
                in (await ask(gateway.url, get("/metrics"))).body.decode()
            )
            answer = await ask(gateway.url, post("/v1/chat/completions", chat(model="m")))
            assert (answer.status, answer.headers["x-penstock-replica"]) == (200, "pod-b")
        assert "Traceback" not in gateway.log


async def test_engines_that_call_in_are_everybodys(tmp_path: Path):
    """Of two workers each serves from an engine that one was told of; unrenewed it is over, and a bad one is refused."""
    path = "/admin/registrations/called-in"
    async with AsyncExitStack() as stack:
        engine = await stack.enter_async_context(simulated_engine())
        config = write(tmp_path, {"registration": {"enabled": True, "ttl_s": 6}})
        gateway = await stack.enter_async_context(serving(config, "--workers", "2"))
        described = {"url": engine, "gpu": {"type": "H100-80G"}, "cost": {"tier": "spot", "usd_per_hour": 1}}

        async def call_in() -> None:
            answer = await ask(gateway.url, told("PUT", path, described))
            assert answer.status == 200, answer.body.decode()
            assert answer.json()["ttl_s"] == 6

        await call_in()
        answered: set[int] = set()
        async with asyncio.timeout(PATIENCE_S):
            while len(answered) < 2:
                await call_in()
                ready = (await ask(gateway.url, get("/readyz"))).json()
                if ready["replicas"] == {"called-in": "ready"}:
                    answered.add(ready["workers"]["answered_by"])
        answer = await ask(gateway.url, post("/v1/chat/completions", chat(model="m")))
        assert answer.headers["x-penstock-replica"] == "called-in"
        for bad, word in (
            ({"url": "http://169.254.169.254/"}, "metadata"),
            ({}, "url: missing"),
            ({"url": engine, "gpus": 1}, "gpus"),
        ):
            answer = await ask(gateway.url, told("PUT", "/admin/registrations/bad", bad))
            assert answer.status == 400
            assert word in answer.body.decode()
        async with asyncio.timeout(PATIENCE_S):  # each worker's clock is its own
            while (await ask(gateway.url, told("DELETE", path))).status != 404:
                await asyncio.sleep(0.1)
            while (await ask(gateway.url, get("/admin/registrations"))).json()["data"]:
                await asyncio.sleep(0.1)
        await until_replicas(gateway.url)
    assert "Traceback" not in gateway.log
