"""The ASGI application, outermost layer first; nothing is built at import."""

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from config.schema import Config, DataPlane
from router.api import build_api
from router.body_budget import BodyBudget
from router.gateway import Gateway
from router.hot_cycle import HotPlane
from router.inbound import Handler
from router.ingress import HotPath, Ingress
from router.tenants.gate import Gate

_EXPOSED = (
    "x-request-id",
    "retry-after",
    "retry-after-ms",
    "x-penstock-replica",
    "x-penstock-cost-tier",
    "x-penstock-queue-ms",
    *(f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")),
)


def create_app(gateway: Gateway, version: str) -> ASGIApp:
    """CORS (only where configured) -> ingress (hot paths leave here) -> FastAPI (the rest, and the lifespan)."""
    server = gateway.config.server
    hot = HotPath(gateway.dispatcher, server, gateway.config.upstream.buffer_bytes, gateway.bodies, gate=gateway.gate)
    app: ASGIApp = Ingress(build_api(gateway, hot, version), hot, gateway.gate)
    if server.cors_origins:
        app = CORSMiddleware(
            app,
            allow_origins=server.cors_origins,
            allow_methods=["GET", "POST", "OPTIONS"],
            allow_headers=["*"],
            expose_headers=_EXPOSED,
        )
    return app


def hot_plane(config: Config, handler: Handler, bodies: BodyBudget, gate: Gate | None = None) -> HotPlane | None:
    """For `router.protocol`: hot requests by their own connection, past ASGI; None: all take the ASGI way."""
    server = config.server
    if server.data_plane is DataPlane.ASGI:
        return None
    return HotPlane(
        handler=handler,
        bodies=bodies,
        max_body_bytes=server.max_body_bytes,
        body_timeout_s=server.body_timeout_s,
        buffer_bytes=config.upstream.buffer_bytes,
        gate=gate,
        cors=bool(server.cors_origins),
    )
