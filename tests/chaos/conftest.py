"""Engines for the whole session, real processes: starting one takes seconds. Tests that kill theirs start their own."""

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.support.engine_process import EngineProcess


@pytest.fixture(scope="session")
def engines() -> Iterator[list[EngineProcess]]:
    """Three that agree about every token and differ in their pace."""
    with ExitStack() as stack:
        yield [stack.enter_context(EngineProcess(seed=seed)) for seed in (1, 2, 3)]
