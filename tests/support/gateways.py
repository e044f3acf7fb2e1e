"""Whole gateways for tests: over fake engines under virtual time, or listening on a real socket in this event loop."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from backends.backend import Backend
from config.schema import Config
from router.app import create_app, hot_plane
from router.decision_documents import Pseudonyms
from router.engines import build_backend
from router.gateway import Gateway
from router.protocol import protocol_with
from router.server import bind
from router.shared.book_in_redis import Book
from router.tracing.tracer import SpanSink
from tests.support.servers import in_this_loop


@dataclass
class Running:
    """A gateway at work and the application in front of it."""

    gateway: Gateway
    app: ASGIApp
    url: str = ""
    server: uvicorn.Server | None = None

    @property
    def connections(self) -> int:
        """Open ones, of clients."""
        assert self.server is not None
        return len(self.server.server_state.connections)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry `labels`; 0.0 where there is none."""
        self.gateway.refresh_gauges()
        total = 0.0
        for family in self.gateway.registry.collect():
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    total += sample.value
        return total


def fake_config(engines: Mapping[str, Any], capacity: Mapping[str, Any] | None = None, **sections: Any) -> Config:
    """Replicas named after fake engines; each serves what its engine tells."""
    declared = {
        "max_num_seqs": 8,
        "max_num_batched_tokens": 2048,
        "kv_blocks": 512,
        "block_size": 16,
        "max_model_len": 4096,
    }
    replicas = [
        {
            "name": name,
            "backend": "openai",
            "url": f"http://127.0.0.1:{9000 + i}",
            "capacity": {**declared, **(capacity or {})},
        }
        for i, name in enumerate(engines)
    ]
    return Config.model_validate({"replicas": replicas, **sections})


@asynccontextmanager
async def gateway_over(
    engines: Mapping[str, Backend],
    config: Config | None = None,
    capacity: Mapping[str, Any] | None = None,
    names: Pseudonyms | None = None,
    span_sink: SpanSink | None = None,
    book: Book | None = None,
    **sections: Any,
) -> AsyncIterator[Running]:
    """A gateway whose replicas are the given backends; the lifespan runs, no socket is opened."""
    config = config or fake_config(engines, capacity, **sections)

    def factory(replica: Any, _config: Any, _http: Any) -> Backend:
        return engines[replica.name] if replica.name in engines else build_backend(replica, _config, _http)

    books = {} if book is None else {"book_factory": lambda _redis: book}
    gateway = Gateway(config, version="test", backend_factory=factory, names=names, span_sink=span_sink, **books)
    async with gateway.running():
        yield Running(gateway, create_app(gateway, "test"))


@asynccontextmanager
async def listening(config: Config, engines: Mapping[str, Backend] | None = None) -> AsyncIterator[Running]:
    """A gateway on a real socket of its own, served by uvicorn in this loop."""

    def factory(replica: Any, whole: Any, http: Any) -> Backend:
        return engines[replica.name] if engines and replica.name in engines else build_backend(replica, whole, http)

    gateway = Gateway(config, version="test", backend_factory=factory)
    app = create_app(gateway, "test")
    listener = bind("127.0.0.1", 0)
    plane = hot_plane(config, gateway.dispatcher, gateway.bodies, gateway.gate)
    protocol = protocol_with(config.server.header_timeout_s, config.server.write_stall_timeout_s, plane)
    server = uvicorn.Server(
        uvicorn.Config(
            app, http=protocol, ws="none", lifespan="on", log_config=None,
            access_log=False, proxy_headers=False, server_header=False, timeout_graceful_shutdown=5,
        )
    )  # fmt: skip
    async with in_this_loop(server, listener):
        try:
            yield Running(gateway, app, f"http://127.0.0.1:{listener.getsockname()[1]}", server)
        finally:
            gateway.begin_drain()
