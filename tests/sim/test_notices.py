"""A spot notice under load, in virtual time over simulated engines: what the doomed replica still takes ends in time."""

import asyncio

from batching.decision_record import DecisionRecord
from batching.request import ReplicaId
from router.standing import Kind, Standing
from tests.support.simulated_fleet import fleet, fleet_config, mixed_load, play
from tests.support.virtual_time import run_virtual

CAPACITY = {"max_num_seqs": 16, "kv_blocks": 2000, "max_num_batched_tokens": 2048, "max_model_len": 4096}
NOTICE_S, LEFT_S, MARGIN_S = 10.0, 10.0, 2.0
SPOT = ReplicaId("spot")


def placements() -> list[DecisionRecord]:
    """Of a load during which the cheapest replica gets ten seconds; all requests are answered in full or were hung up on."""

    async def main() -> list[DecisionRecord]:
        config = fleet_config("spot", "b", capacity=CAPACITY, spot={"margin_s": MARGIN_S})
        told = config.model_dump(mode="json")
        told["replicas"][0]["cost"] = {"tier": "spot", "usd_per_hour": 0.1}
        told["replicas"][1]["cost"] = {"tier": "on_demand", "usd_per_hour": 5.0}
        async with fleet(type(config).model_validate(told)) as work:
            gateway, loop = work.running.gateway, asyncio.get_running_loop()
            loads = mixed_load(150, seed=5, over_s=25.0)

            def notice() -> None:
                gateway.farewells.join(SPOT, Standing(kind=Kind.RECLAIM, deadline_s=loop.time() + LEFT_S))

            begun_s = loop.time()
            loop.call_at(begun_s + NOTICE_S, notice)
            calls = await play(work, loads)
            for plan in loads:
                assert calls[plan.name].complete or plan.hang_up_s is not None
            await work.check_rest()
            assert SPOT in gateway.farewells.left().released
            assert gateway.decisions.ledger is not None
            return gateway.decisions.ledger.recent(limit=1000)

    return run_virtual(main())


def test_work_taken_after_the_notice_ends_before_the_deadline():
    """Some is taken, all of it is over by the margin in truth, and nothing comes after that."""
    found = placements()
    deadline_s = NOTICE_S + LEFT_S
    there = [record for record in found if record.replica == SPOT]
    late = [record for record in there if record.placed_s > NOTICE_S]
    assert any(record.placed_s <= NOTICE_S for record in there)
    assert late
    for record in late:
        ended_s = record.end().finished_s
        assert ended_s is not None
        assert ended_s <= deadline_s - MARGIN_S
    assert any(record.placed_s > NOTICE_S for record in found if record.replica != SPOT)
