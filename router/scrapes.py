"""`/metrics` and `/metrics/vllm`: the page of figures as scrapers want it, of all workers together. Decides nothing of what is in it."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence

from fastapi import FastAPI, Request, Response
from prometheus_client import CollectorRegistry

from batching.replica import ReplicaState
from metrics.aliases import Engines, FleetAsEngine
from metrics.catalog import Metrics
from metrics.exposition import rendering
from metrics.pages import Page, of_crew, read, write
from router.gateway import Gateway


def add_scrapes(api: FastAPI, gateway: Gateway) -> None:
    """The routes. For everybody who reaches the port, as engines' own pages are."""

    @api.get("/metrics", tags=["health"], response_model=None)
    async def metrics(request: Request) -> Response:
        """Prometheus text, or OpenMetrics where the scraper asks for it; of all workers together."""
        if gateway.crew is None:
            gateway.refresh_gauges()
            return await _rendered(gateway.registry, request)
        registry = CollectorRegistry()
        write(of_crew(await gateway.crew.pages()), Metrics.create(registry))
        return await _rendered(registry, request)

    @api.get("/metrics/vllm", tags=["health"], response_model=None)
    async def as_vllm(request: Request) -> Response:
        """The fleet as if it were one vLLM, for its dashboards and for KEDA queries (docs/metrics.md)."""
        page = await _page(gateway)
        registry = CollectorRegistry()
        states = gateway.scheduler.states(0.0)
        registry.register(FleetAsEngine(page, _engines(gateway.models.told(), states), _together(states)))
        return await _rendered(registry, request)


async def _page(gateway: Gateway) -> Page:
    if gateway.crew is not None:
        return of_crew(await gateway.crew.pages())
    gateway.refresh_gauges()
    return read(gateway.metrics)


def _engines(models: Iterable[str], states: Iterable[ReplicaState]) -> Mapping[str, Engines]:
    """By model; those without a replica with nothing."""
    serving: dict[str, list[ReplicaState]] = {model: [] for model in models}
    for state in states:
        for model in state.profile.models:
            if model in serving:
                serving[model].append(state)
    return {model: _together(states) for model, states in serving.items()}


def _together(states: Sequence[ReplicaState]) -> Engines:
    loads = [(state.profile, state.load) for state in states if state.load is not None]
    used = [(load.kv_usage_ratio, profile.kv_blocks or 1) for profile, load in loads if load.kv_usage_ratio is not None]
    blocks = sum(weight for _, weight in used)
    return Engines(
        waiting=sum(load.waiting or 0 for _, load in loads),
        kv_usage_ratio=sum(ratio * weight for ratio, weight in used) / blocks if blocks else 0.0,
        kv_blocks=sum(state.profile.kv_blocks or 0 for state in states),
        block_size=min((state.profile.block_size for state in states if state.profile.block_size), default=0),
    )


async def _rendered(registry: CollectorRegistry, request: Request) -> Response:
    """An instrument at a time: a page of a large fleet takes long, and streams go on meanwhile."""
    pieces, content_type = rendering(registry, request.headers.get("accept", ""))
    body = []
    for piece in pieces:
        body.append(piece)
        await asyncio.sleep(0)
    return Response(b"".join(body), media_type=None, headers={"content-type": content_type})
