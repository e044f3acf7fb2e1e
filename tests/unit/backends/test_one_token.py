"""The least question to an engine: what it is asked, and what its answers mean."""

import asyncio
from typing import Any

import pytest

from backends.backend import ClosedEarly, ConnectFailed, EngineCall, ServedModel
from backends.one_token import ask_one_token
from backends.simulated.backend import SimulatedBackend
from backends.simulated.options import EngineOptions
from config.schema import ModelKind
from tests.support.fake_engine import FakeEngine, FakeReply, Script
from tests.support.virtual_time import run_virtual

CHAT, ADAPTER = ServedModel(name="m"), ServedModel(name="lora", parent="m")
EMBEDDING = ServedModel(name="e", kind="embedding")


def asked(engine: Any, *models: ServedModel, first: bool = False) -> str | None:
    return run_virtual(ask_one_token(engine, models, timeout_s=1.0, first=first))


def test_a_simulated_engine_gives_one() -> None:
    """Of both kinds of model."""
    engine = SimulatedBackend(EngineOptions(), {"m": ModelKind.CHAT, "e": ModelKind.EMBEDDING})
    assert asked(engine, CHAT, EMBEDDING) is None


def test_what_is_asked() -> None:
    """One token at most, of base models only; an embedding of an embedding model."""
    engine = FakeEngine(default=lambda: Script([b"{}"]))
    assert asked(engine, CHAT, ADAPTER, EMBEDDING, first=True) is None
    assert [(call.path, call.fields["model"]) for call in engine.calls] == [
        ("/v1/completions", "m"),
        ("/v1/embeddings", "e"),
    ]
    assert engine.calls[0].fields["max_tokens"] == 1
    assert all(call.fields["priority"] < 0 and not call.stream for call in engine.calls)
    assert engine.running == 0


def test_a_server_with_many_models_is_not_asked_for_all() -> None:
    """Four questions at most."""
    engine = FakeEngine(default=lambda: Script([b"{}"]))
    assert asked(engine, *(ServedModel(name=f"m{n}") for n in range(50))) is None
    assert len(engine.calls) == 4


@pytest.mark.parametrize(
    ("script", "why"),
    [
        (Script(hang=True), "no token within 1 s"),
        (Script(head_s=5.0), "no token within 1 s"),
        (Script(error=ConnectFailed()), "model m gave no token: connect_error"),
        (Script(fail=ClosedEarly()), "model m gave no token: closed"),
        (Script([b"{}"], status=500), "model m answered 500 to a request for one token"),
        (Script([b"{}"], status=503), "model m answered 503 to a request for one token"),
        (Script([b"{}"], status=429), "model m answered 429 to a request for one token"),
    ],
)
def test_no_token(script: Script, why: str) -> None:
    """Silence, a broken connection, an engine's own failure; nothing stays open."""
    engine = FakeEngine(script)
    assert asked(engine, CHAT) == why
    assert engine.running == 0


def test_an_engine_that_refuses_is_asked_otherwise_and_then_believed() -> None:
    """No plain completions: a chat. Neither: nothing better can be asked, so it counts as alive."""
    engine = FakeEngine(Script([b"{}"], status=404), Script([b"{}"]))
    assert asked(engine, CHAT) is None
    assert [call.path for call in engine.calls] == ["/v1/completions", "/v1/chat/completions"]
    engine = FakeEngine(Script([b"{}"], status=404), Script([b"{}"], status=400))
    assert asked(engine, CHAT) is None
    engine = FakeEngine(Script([b"{}"], status=404), Script(hang=True))
    assert asked(engine, CHAT) == "no token within 1 s"


def test_one_silent_model_of_two_is_enough() -> None:
    """The answer of the other does not count for it."""

    class OneHangs(FakeEngine):
        async def send(self, call: EngineCall) -> FakeReply:
            if call.fields["model"] == "e":
                await asyncio.sleep(1e6)
            return await super().send(call)

    engine = OneHangs(default=lambda: Script([b"{}"]))
    assert asked(engine, CHAT, EMBEDDING) == "no token within 1 s"
    assert asked(engine, CHAT) is None
