"""A gateway on a real socket, a fault proxy before each of its engines, and what a stream may look like when one breaks."""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

from config.schema import Config
from tests.support.conditions import until, until_at_rest
from tests.support.engine_process import EngineProcess, replica
from tests.support.fault_proxy import Fault, FaultProxy, Plan
from tests.support.gateways import Running, listening
from tests.support.stream_check import ERROR_EVENT
from tests.support.stream_client import Told, told

# Nobody is late by these on a machine that is busy with something else: what breaks is what the test breaks.
PATIENT: Mapping[str, Any] = {
    "upstream": {"first_byte_timeout_s": 60.0, "stall_timeout_s": 60.0, "connect_timeout_s": 30.0},
    "probe": {"interval_s": 0.1, "timeout_s": 30.0},
    "health": {"silence_s": 30.0, "token_timeout_s": 30.0},
}
# For tests that wait for a silence to be noticed; who is late by these is one stream, or one look, that is broken more.
IMPATIENT: Mapping[str, Any] = {
    "upstream": {"stall_timeout_s": 1.5},
    "probe": {"timeout_s": 2.0},
    "health": {"silence_s": 1.0, "token_timeout_s": 2.0},
}


@dataclass
class Fleet:
    """A gateway at work, its engines' proxies by replica name, and the plan of faults that they share."""

    running: Running
    proxies: dict[str, FaultProxy]
    plan: Plan
    asked: int = 0

    @property
    def url(self) -> str:
        return self.running.url

    async def ask(self, body: Mapping[str, Any], *faults: Fault, **options: Any) -> Told:
        """One request whose attempts meet these faults, one each."""
        self.asked += 1
        request_id = self.name(self.asked)
        self.plan.add(request_id, *faults)
        return await told(self.url, body, request_id=request_id, **options)

    @staticmethod
    def name(number: int) -> str:
        """The id of the request that was asked as the n-th, from 1."""
        return f"chaos-{number:05}-"

    def broken_attempts(self) -> dict[str, int]:
        """Attempts by outcome; those that went well, or that nobody needed any more, are left aside."""
        found: Counter[str] = Counter()
        for family in self.running.gateway.registry.collect():
            for sample in family.samples:
                if sample.name == "penstock_upstream_attempts_total":
                    found[sample.labels["outcome"]] += int(sample.value)
        return {outcome: count for outcome, count in found.items() if outcome not in {"ok", "hedged", "cancelled"}}

    def lifecycles(self) -> dict[str, str]:
        return {str(state.profile.id): str(state.lifecycle) for state in self.running.gateway.scheduler.states(0.0)}

    async def until_ready(self, *names: str) -> None:
        wanted = set(names or self.proxies)
        await until(
            lambda: {n for n, state in self.lifecycles().items() if state == "ready"} >= wanted, self.lifecycles
        )


@asynccontextmanager
async def fleet(engines: Sequence[EngineProcess], *, dearer: float = 1.0, **sections: Any) -> AsyncIterator[Fleet]:
    """Up and ready; at the end every fault was met, and nothing may be left of any request: no lease, no task, no engine's work.

    `dearer`: each replica's price over that of the one before it.
    """
    plan = Plan()
    for engine in engines:
        await engine.ready()
    async with AsyncExitStack() as stack:
        proxies = {}
        for number, engine in enumerate(engines):
            name = f"r{number}"
            proxies[name] = await stack.enter_async_context(FaultProxy(name, engine.url, plan))
        replicas = [
            replica(name, proxy.url, usd_per_hour=dearer**number)
            for number, (name, proxy) in enumerate(proxies.items())
        ]
        config = Config.model_validate({"replicas": replicas, **merged(PATIENT, sections)})
        running = await stack.enter_async_context(listening(config))
        found = Fleet(running, proxies, plan)
        await found.until_ready()
        yield found
        assert plan.left == [], "faults that nobody met: nothing was tried"
        await until_at_rest(running)
        for engine in engines:
            if engine.running:
                await engine.until_idle()


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Sections over sections, key by key."""
    return {name: {**base.get(name, {}), **more.get(name, {})} for name in base.keys() | more.keys()}


def must_continue(answer: Told, what: object = "") -> None:
    """The client saw one unbroken, complete, exactly equal answer."""
    assert answer.faults == [], (what, answer.faults, answer.raw[-600:])


def must_survive(found: Fleet, answers: Sequence[Told]) -> None:
    """All of them, begun on engines that broke while they spoke."""
    assert answers
    assert found.running.metric("penstock_stream_interruptions_total", action="resumed") > 0, "all had ended before"
    for answer in answers:
        must_continue(answer)


def must_be_told(answer: Told, what: object = "") -> None:
    """An explicit error: as a status before the stream began, as its last event afterwards; what was said before is right."""
    if answer.status != 200:
        assert answer.status in {502, 503, 504}, (what, answer.faults)
        return
    assert ERROR_EVENT in answer.faults, (what, answer.faults, answer.raw[-600:])
    harmless = ("text lost at the end", "[DONE] 0 times", "finish reasons []", "usage 0 times", ERROR_EVENT)
    assert [fault for fault in answer.faults if not fault.startswith(harmless)] == [], what
