"""FastAPI runs what is not a coroutine in a thread: a hand-over each way, and one of forty threads for every caller there is."""

from collections.abc import Iterable, Iterator
from inspect import iscoroutinefunction

from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute

from router.api import build_api
from router.gateway import Gateway
from router.ingress import HotPath
from tests.support.fake_engine import FakeEngine
from tests.support.gateways import fake_config


def _routes(routes: Iterable[object]) -> Iterator[APIRoute]:
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        elif (included := getattr(route, "original_router", None)) is not None:
            yield from _routes(included.routes)


def _calls(dependant: Dependant) -> Iterator[object]:
    yield dependant.call
    for needed in dependant.dependencies:
        yield from _calls(needed)


def test_no_endpoint_and_no_dependency_needs_a_thread() -> None:
    """All routes that FastAPI calls, the admin API's too, with what they depend on."""
    config = fake_config({"a": FakeEngine()})
    gateway = Gateway(config, version="test")
    hot = HotPath(gateway.dispatcher, config.server, config.upstream.buffer_bytes, gateway.bodies)
    routes = list(_routes(build_api(gateway, hot, "test").routes))
    assert {"/admin/decisions", "/metrics", "/v1/completions"} <= {route.path for route in routes}
    called = {call for route in routes for call in _calls(route.dependant)}
    assert [call for call in called if not iscoroutinefunction(call)] == []
