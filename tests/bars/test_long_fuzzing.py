"""The state machines of the fast tests, run for long: `make bars`."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.stateful.test_queue_machine import QueueMachine
from tests.stateful.test_scheduler_machine import SchedulerMachine
from tests.unit.backends.simulated.test_engine_machine import EngineMachine
from tests.unit.backends.simulated.test_kv_cache_machine import KvCacheMachine

pytestmark = [pytest.mark.bars, pytest.mark.timeout(3600)]

LONG = settings(max_examples=3000, stateful_step_count=80, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("machine", [SchedulerMachine, QueueMachine, EngineMachine, KvCacheMachine])
def test_invariants_hold_for_long(machine: type[RuleBasedStateMachine]) -> None:
    """No ticket lost or served twice, reserved is what is leased, no budget exceeded, no block leaked: in 3,000 long stories."""
    assert issubclass(machine, RuleBasedStateMachine)
    run_state_machine_as_test(machine, settings=LONG)
