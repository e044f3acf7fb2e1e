"""The embedded default - a reserved, an on-demand and a spot replica - under light and heavy load: what is paid for is used first."""

from collections import Counter

from config.load import embedded_default
from tests.support.simulated_fleet import Plan, fleet, mixed_load, play
from tests.support.virtual_time import run_virtual


def tiers_used(load: list[Plan]) -> Counter[str | None]:
    async def main() -> Counter[str | None]:
        async with fleet(embedded_default()) as subject:
            calls = await play(subject, load)
            await subject.check_rest()
            assert {call.status for call in calls.values()} == {200}
            return Counter(call.header("x-penstock-cost-tier") for call in calls.values())

    return run_virtual(main())


def burst(count: int, *, over_s: float) -> list[Plan]:
    return [
        Plan(name=plan.name, at_s=plan.at_s, body={**plan.body, "stream": True, "service_tier": "default"})
        for plan in mixed_load(count, seed=1, over_s=over_s, model="sim-8b")
    ]


def test_light_load_stays_on_the_reserved_replica() -> None:
    """While the machine that is paid for anyway keeps the objectives, no other is used."""
    assert tiers_used(burst(60, over_s=60.0)) == {"reserved": 60}


def test_heavy_load_spills_to_the_others() -> None:
    """When it cannot keep them, spot and on-demand take over what it cannot take, and it goes on working."""
    used = tiers_used(burst(600, over_s=1.0))
    assert used["reserved"] > 100
    assert used["spot"] > 0
    assert used["on_demand"] > 0
