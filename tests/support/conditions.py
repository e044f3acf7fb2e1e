"""Waiting for something to become true on a real clock: polled, bounded, and said when it does not."""

import asyncio
from collections.abc import Callable

from tests.support.gateways import Running
from tests.support.patience import PATIENCE_S


async def until(condition: Callable[[], bool], what: Callable[[], object] = lambda: "") -> None:
    """Polls every few milliseconds; `what` shows the state of things when it never came true."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + PATIENCE_S
    while not condition():
        assert loop.time() < deadline_s, f"never came true: {what()}"
        await asyncio.sleep(0.005)


def at_rest(running: Running) -> bool:
    """Nothing queued, leased or in flight; the ledgers add up."""
    scheduler = running.gateway.scheduler
    scheduler.check()
    return (
        sum(row.depth for row in scheduler.queue_statistics(0.0)) == 0
        and sum(state.running for state in scheduler.states(0.0)) == 0
        and running.gateway.dispatcher.active == 0
        and running.metric("penstock_requests_in_flight") == 0
    )


async def until_at_rest(running: Running) -> None:
    await until(lambda: at_rest(running), lambda: running.gateway.scheduler)
