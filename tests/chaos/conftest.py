"""Engines for the whole session, real processes: starting one takes seconds. Tests that kill theirs start their own."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.chaos.fleet import HAS_NOTICES
from tests.support.engine_process import EngineProcess

# Scenarios of spot notices need POST /admin/replicas/{name}/notice; with it (it brings the section `spot`) this list is empty and can go.
collect_ignore = [] if HAS_NOTICES else ["test_chaos_notices.py"]


@pytest.fixture(scope="session")
def engines() -> Iterator[list[EngineProcess]]:
    """Three that agree about every token and differ in their pace."""
    with ExitStack() as stack:
        yield [stack.enter_context(EngineProcess(seed=seed)) for seed in (1, 2, 3)]
