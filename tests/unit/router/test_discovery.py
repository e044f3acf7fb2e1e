"""One fleet of all sources: who counts where two say the same, what a notice comes to, registrations that run out."""

import asyncio
from collections.abc import Sequence

import pytest
from prometheus_client import CollectorRegistry

from backends.discovery.found import Found, Tell, Warned
from batching.request import ReplicaId
from config.discovery import Discovery
from config.replica import ReplicaConfig
from metrics.catalog import Metrics
from router.discovery import Discovered, Source, joined
from router.standing import Kind, Standing
from tests.support.virtual_time import run_virtual


def replica(name: str, host: str = "", **fields: object) -> ReplicaConfig:
    return ReplicaConfig.model_validate({"name": name, "url": f"http://{host or name}:8000", **fields})


class Fleet:
    """What was done."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.words: list[tuple[str, Standing | None]] = []

    def set_replicas(self, replicas: Sequence[ReplicaConfig]) -> None:
        self.names = [one.name for one in replicas]

    def warn(self, replica: ReplicaId, word: Standing) -> None:
        self.words.append((replica, word))

    def unwarn(self, replica: ReplicaId) -> None:
        self.words.append((replica, None))


class Script:
    """A source that says one thing after another, a second apart; None: it fails."""

    def __init__(self, *said: Sequence[Found] | None, after_s: float = 0.0) -> None:
        self.name = "script"
        self._said = list(said)
        self._after_s = after_s

    async def run(self, tell: Tell) -> None:
        await asyncio.sleep(self._after_s)
        while self._said:
            said = self._said.pop(0)
            if said is None:
                raise RuntimeError("no kubeconfig")
            tell(said)
            await asyncio.sleep(1)
        await asyncio.Event().wait()


async def discovered(fleet: Fleet, *sources: Source, for_s: float, own: Sequence[ReplicaConfig] = ()) -> float:
    """How long the start waited."""
    found = Discovered(Discovery(), fleet, fleet, Metrics.create(CollectorRegistry()))
    found._sources = list(sources)
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        await found.begin(own, tasks)
        waited_s = loop.time()
        await asyncio.sleep(for_s)
        found.close()
    return waited_s


def test_the_files_own_come_first():
    """A name or an address that is taken is left out, and said."""
    own = [replica("a"), replica("b", "10.0.0.2")]
    said = [
        ("one", [Found(replica("a", "10.0.0.9")), Found(replica("c", "10.0.0.2")), Found(replica("d"))]),
        ("two", [Found(replica("d", "10.0.0.3")), Found(replica("e"))]),
    ]
    fleet = joined(own, said)
    assert [one.name for one in fleet.replicas] == ["a", "b", "d", "e"]
    assert len(fleet.problems) == 3
    assert any("two: d at http://10.0.0.3:8000 is left out, one has" in problem for problem in fleet.problems)


def test_a_model_of_two_kinds_is_left_out():
    """As the configuration would refuse it; what is not at fault stays."""
    own = [replica("a", models=[{"name": "m", "kind": "chat"}])]
    bad = replica("b", models=[{"name": "m", "kind": "embedding"}])
    fleet = joined(own, [("one", [Found(bad), Found(replica("c"))])])
    assert [one.name for one in fleet.replicas] == ["a", "c"]
    assert len(fleet.problems) == 1


def test_replicas_come_change_and_go():
    """Each word of a source is the whole of what it knows."""
    fleet = Fleet()
    a, b = Found(replica("a")), Found(replica("b"))
    waited_s = run_virtual(discovered(fleet, Script([a], [a, b], [b]), for_s=0.5, own=[replica("own")]))
    assert (fleet.names, waited_s) == (["own", "a"], 0)
    run_virtual(discovered(fleet, Script([a], [a, b], [b]), for_s=5))
    assert fleet.names == ["b"]


def test_a_source_that_fails_is_tried_again_and_what_it_said_stays(caplog: pytest.LogCaptureFixture):
    """The start waits for a first word, but not for ever."""
    fleet = Fleet()
    late = Script([Found(replica("late"))], after_s=60)
    waited_s = run_virtual(discovered(fleet, Script([Found(replica("a"))], None), late, for_s=2))
    assert fleet.names == ["a"]
    assert waited_s == 3
    assert "no word yet from script" in caplog.text
    run_virtual(discovered(fleet, Script([Found(replica("a"))], None, [Found(replica("b"))]), for_s=10))
    assert fleet.names == ["b"]
    assert "no kubeconfig" in caplog.text


def test_notices_are_given_once_and_withdrawn():
    """A deadline counts from when it was first seen; of a machine that is gone nothing is withdrawn."""
    fleet = Fleet()
    there, doomed = replica("a"), replica("b")
    warned = Warned("reclaim", "n/spot", 30.0)
    script = Script(
        [Found(there, Warned("rebalance", "n/re")), Found(doomed, warned)],
        [Found(there), Found(doomed, warned)],
        [Found(there)],
    )
    run_virtual(discovered(fleet, script, for_s=5))
    first, second, third = fleet.words
    assert first == ("a", Standing(kind=Kind.REBALANCE, provider="kubernetes", ids=("n/re",)))
    assert second == ("b", Standing(kind=Kind.RECLAIM, provider="kubernetes", ids=("n/spot",), deadline_s=30.0))
    assert third == ("a", None)


def test_a_registration_runs_out():
    """Unless it is renewed in time; the others stay."""

    async def main() -> list[list[str]]:
        fleet, seen = Fleet(), []
        config = Discovery.model_validate({"registration": {"enabled": True, "ttl_s": 10}})
        found = Discovered(config, fleet, fleet, Metrics.create(CollectorRegistry()))
        table, loop = found.registrations, asyncio.get_running_loop()
        assert table is not None
        async with asyncio.TaskGroup() as tasks:
            await found.begin([], tasks)
            table.put(replica("a"), loop.time())
            table.put(replica("b"), loop.time())
            for _ in range(3):
                await asyncio.sleep(6)
                table.put(replica("a"), loop.time())
                seen.append(fleet.names)
            found.close()
        return seen

    assert run_virtual(main()) == [["a", "b"], ["a"], ["a"]]
