"""Hundreds of requests of all kinds through the whole gateway and three simulated engines, in virtual time."""

from collections.abc import Mapping

from tests.support.asgi import Call
from tests.support.simulated_fleet import Plan, contents, event_log, fleet, fleet_config, mixed_load, play
from tests.support.virtual_time import run_virtual

# Small engines, so that the load queues: some 40 sequences fit, 300 arrive within 4 seconds.
SMALL = {"max_num_seqs": 16, "kv_blocks": 1200, "max_num_batched_tokens": 2048, "max_model_len": 8192}
REQUESTS = 300


def played(seed: int) -> tuple[list[Plan], Mapping[str, Call]]:
    plans = mixed_load(REQUESTS, seed=seed, over_s=4.0)

    async def main() -> Mapping[str, Call]:
        async with fleet(fleet_config("a", "b", "c", capacity=SMALL, queue={"max_wait_s": 600.0})) as subject:
            calls = await play(subject, plans)
            await subject.check_rest()
            assert subject.running.metric("penstock_replica_running") == 0
            assert subject.running.metric("penstock_queue_depth") == 0
            return calls

    return plans, run_virtual(main())


def test_every_answer_is_whole_and_in_order() -> None:
    """Each answer is word for word what its prompt's answer is; one that was hung up on is a prefix of it."""
    plans, calls = played(seed=7)
    hung_up = 0
    for plan in plans:
        call = calls[plan.name]
        if call.complete:
            assert call.status == 200, call.data
            assert contents(call) == plan.text
        else:
            hung_up += 1
            assert plan.hang_up_s is not None
            assert plan.text.startswith(contents(call))
    assert 30 < hung_up < 100


def test_the_same_seed_gives_the_same_log() -> None:
    """Nothing but the input decides: two runs agree in every byte and every time."""
    first, again = ("\n".join(event_log(played(seed=11)[1])) for _ in range(2))
    assert first.count("\n") > 10_000
    assert first == again
