"""What backends are handed: bytes for those that pass them on, members for those that re-shape them, and both say the same."""

from typing import Any

from tests.support.asgi import chat, post
from tests.support.fake_engine import FakeEngine
from tests.support.gateways import gateway_over
from tests.support.simulated_fleet import CHAT, fleet, fleet_config, mixed_load, play
from tests.support.virtual_time import run_virtual

RISKY: dict[str, Any] = {"chat_template": "{{ secrets }}", "cache_salt": "x", "priority": -9}


def test_body_and_fields_agree() -> None:
    """Whatever is cut out of the body, or added to it, is so in the parsed members, too: they reach engines over gRPC."""
    bodies: list[dict[str, Any]] = [
        chat(stream=True),
        chat(stream=True, **RISKY),
        chat(stream=True, stream_options={"include_usage": False, "continuous_usage_stats": True}),
        chat(stream=True, stream_options=None),
        chat(stream=True, stream_options={"include_usage": True}),
        chat(**RISKY),
        chat(),
    ]
    engine = FakeEngine()

    async def main() -> None:
        async with gateway_over({"a": engine}) as running:
            for body in bodies:
                await post(running.app, CHAT, body).run()

    run_virtual(main())
    asked = {call.body: call.fields for call in engine.calls}
    assert len(asked) >= 5  # documents that the fake could not answer were asked for again
    for fields in asked.values():
        assert fields.keys().isdisjoint(RISKY)
    assert all(call.fields["stream_options"]["include_usage"] for call in engine.calls if call.stream)  # type: ignore[index]


def test_streams_teach_the_length_of_prompts() -> None:
    """Simulated engines report usage with streams, so that the estimate of prompt tokens leaves its prior."""

    async def main() -> tuple[int, int]:
        async with fleet(fleet_config("a")) as subject:
            scheduler = subject.running.gateway.scheduler
            before = scheduler.prompt_tokens("m", 6000)
            plans = [p for p in mixed_load(60, seed=4, over_s=5.0) if p.body["stream"] and p.hang_up_s is None]
            await play(subject, plans)
            return before, scheduler.prompt_tokens("m", 6000)

    before, after = run_virtual(main())
    assert before == 1500  # four characters a token
    assert after < 1400  # on its way to 1000: the engine counts six characters a token of "lorem "
