"""What a replica may still owe: its next step at worst, and first tokens that are long overdue."""

import pytest

from batching.arrears import next_step_s, patience_s, predictions_known
from batching.live_replica import LiveReplica
from batching.replica import Lifecycle
from config.schema import Scheduling
from tests.support.scheduling import profile, request, scheduler


def live() -> LiveReplica:
    replica = LiveReplica(profile(), Lifecycle.READY, Scheduling())
    replica.refresh()
    assert replica.offer.decode_s > 0
    return replica


def test_a_step_of_a_replica_nobody_knows_may_take_ten_times_as_long() -> None:
    """And with every judged prediction that was right, less."""
    replica = live()
    unknown_s = next_step_s(replica)
    assert not predictions_known(replica)
    assert unknown_s == pytest.approx(10 * replica.offer.decode_s)
    for _ in range(30):
        replica.audit.tpot.add(0.02, 0.02, 0.02)
    assert predictions_known(replica)
    assert next_step_s(replica) == pytest.approx(replica.offer.decode_s)
    for _ in range(200):
        replica.audit.tpot.add(0.02, 0.02, 0.04)
    assert next_step_s(replica) == pytest.approx(2 * replica.offer.decode_s, rel=0.01)


def test_prompts_that_wait_make_the_next_step_longer() -> None:
    """By one chunk of them at most: what is behind it is the step after."""
    replica = live()
    before_s = next_step_s(replica)
    replica.ledger.prefill_s = 0.01
    assert next_step_s(replica) == pytest.approx(before_s + 0.1)
    replica.ledger.prefill_s = 1e6
    chunk_s = replica.offer.chunk_s + 2048 * replica.offer.token_s
    assert next_step_s(replica) == pytest.approx(before_s + 10 * chunk_s)


def test_overdue_far_beyond_what_was_predicted() -> None:
    """Two seconds at least; a stream's first token, or a whole document's longest answer; what has come is not overdue."""
    built = scheduler(profile())
    a = profile().id
    built.submit(request("stream", prompt_tokens=10, max_output_tokens=100), 0.0)
    built.submit(request("document", prompt_tokens=10, max_output_tokens=1000, streaming=False), 0.0)
    placed = built.advance(0.0)
    assert len(placed) == 2
    assert built.overdue(a, 1.9) == 0
    assert built.overdue(a, 3.0) == 1
    assert built.overdue(a, 1000.0) == 2
    built.on_first_token(placed[0].lease.id, 3.0)  # type: ignore[union-attr]
    assert built.overdue(a, 4.0) == 0


def test_patience_grows_with_the_error_of_predictions() -> None:
    """Five times what was predicted at worst."""
    replica = live()
    assert patience_s(replica, 0.001) == 2.0
    assert patience_s(replica, 1.0) == pytest.approx(50.0)
    for _ in range(30):
        replica.audit.ttft.add(1.0, 1.0, 1.0)
    assert patience_s(replica, 1.0) == pytest.approx(5.0)
