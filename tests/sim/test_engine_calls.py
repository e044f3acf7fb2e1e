"""What backends are handed: what a client may not say is cut out, and usage asked for, whether they pass the body on or re-shape it."""

from typing import Any

from tests.support.asgi import chat, post
from tests.support.fake_engine import FakeEngine
from tests.support.gateways import gateway_over
from tests.support.simulated_fleet import CHAT, fleet, fleet_config, mixed_load, play
from tests.support.virtual_time import run_virtual

RISKY: dict[str, Any] = {"chat_template": "{{ secrets }}", "cache_salt": "x", "priority": -9}


def test_what_is_cut_reaches_no_engine() -> None:
    """Risky members of any body are gone for backends that parse it, too; streams ask for usage whatever the client said."""
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
