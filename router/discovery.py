"""The fleet as it is discovered: what all sources say, beside the file's own list, and what becomes of it.

`joined` decides which replicas there are; a source that fails keeps what it said last. How each source looks is `backends.discovery`'s,
how a replica comes and goes the gateway's.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, Protocol

from msgspec import structs

from backends.backoff import Backoff
from backends.discovery.dns import DnsSource
from backends.discovery.found import Found, Source, Warned
from backends.discovery.kubernetes import KubernetesSource
from backends.discovery.registration import Registrations
from batching.request import ReplicaId
from config.checks import engine_address, fleet_problems
from config.discovery import Discovery
from config.replica import ReplicaConfig
from metrics.catalog import Metrics
from router.farewell import Farewells
from router.standing import Kind, Standing

log = logging.getLogger("penstock.discovery")

PROVIDER: Final = "kubernetes"  # of the notices that are made here
_FIRST_S: Final = 3.0  # that a start waits for the sources' first words: the first request then finds a fleet
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0


class Fleet(Protocol):
    """What is done with what was found."""

    def set_replicas(self, replicas: Sequence[ReplicaConfig]) -> None:
        """These, and no others."""
        ...


class Words(Protocol):
    """Who is told of machines that go."""

    def warn(self, replica: ReplicaId, word: Standing) -> None:
        """Its machine is about to go; deadlines on the loop's clock."""
        ...

    def unwarn(self, replica: ReplicaId) -> None:
        """What was said by `warn` does not hold any more."""
        ...


class Joined(NamedTuple):
    """One fleet of all."""

    replicas: tuple[ReplicaConfig, ...]
    warned: Mapping[ReplicaId, Warned]
    problems: frozenset[str]


def joined(own: Sequence[ReplicaConfig], said: Iterable[tuple[str, Sequence[Found]]]) -> Joined:
    """The file's own first, then the sources in order; whoever comes later with a name or an address that is taken is left out."""
    replicas = list(own)
    names = {replica.name: "the configuration" for replica in own}
    engines = {engine_address(replica.url): "the configuration" for replica in own if replica.url is not None}
    warned: dict[ReplicaId, Warned] = {}
    problems: set[str] = set()
    for source, all_found in said:
        for found in all_found:
            replica = found.replica
            assert replica.url is not None
            engine = engine_address(replica.url)
            taken = names.get(replica.name) or engines.get(engine)
            if taken is not None:
                problems.add(f"{source}: {replica.name} at {replica.url} is left out, {taken} has its name or address")
                continue
            names[replica.name] = engines[engine] = source
            replicas.append(replica)
            if found.warned is not None:
                warned[ReplicaId(replica.name)] = found.warned
    left_out = {}
    for where, what in fleet_problems(replicas):
        if isinstance(where[1], int) and where[1] >= len(own):
            left_out[where[1]] = what
    problems.update(f"{replicas[index].name} is left out: {what}" for index, what in left_out.items())
    kept = tuple(replica for index, replica in enumerate(replicas) if index not in left_out)
    return Joined(kept, warned, frozenset(problems))


class Discovered:
    """`begin` inside the gateway's task group; `own` may be changed by a reload."""

    def __init__(self, config: Discovery, fleet: Fleet, words: Words, metrics: Metrics) -> None:
        self.registrations: Registrations | None = None
        self._fleet = fleet
        self._words = words
        self._metrics = metrics
        self.own: Sequence[ReplicaConfig] = ()
        self._sources: list[Source] = [DnsSource(one) for one in config.dns]
        self._sources += [KubernetesSource(one) for one in config.kubernetes]
        if config.registration.enabled:
            self.registrations = Registrations(config.registration.ttl_s, config.registration.most)
            self._sources.append(self.registrations)
        self._said: dict[int, Sequence[Found]] = {}
        self._heard = asyncio.Event()
        self._warned: dict[ReplicaId, Warned] = {}
        self._problems: frozenset[str] = frozenset()
        self._running: list[asyncio.Task[None]] = []

    async def begin(self, own: Sequence[ReplicaConfig], tasks: asyncio.TaskGroup) -> None:
        """Every source is asked, and waited for a little."""
        self.own = own
        for number, source in enumerate(self._sources):
            self._running.append(tasks.create_task(self._listen(number, source), name=f"discovery-{source.name}"))
        try:
            async with asyncio.timeout(_FIRST_S):
                while len(self._said) < len(self._sources):
                    await self._heard.wait()
                    self._heard.clear()
        except TimeoutError:
            silent = [source.name for number, source in enumerate(self._sources) if number not in self._said]
            log.warning("no word yet from %s; serving begins without", ", ".join(silent))

    def close(self) -> None:
        for task in self._running:
            task.cancel()

    def set_own(self, own: Sequence[ReplicaConfig]) -> None:
        """The file's list, after a reload."""
        self.own = own
        self._apply()

    def register(self, name: str, replica: ReplicaConfig | None) -> None:
        """An engine called in; None: it is over. Raises Full."""
        if self.registrations is not None and replica is not None:
            self.registrations.put(replica, asyncio.get_running_loop().time())
        elif self.registrations is not None:
            self.registrations.drop(name)

    async def _listen(self, number: int, source: Source) -> None:
        backoff = Backoff(_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S)

        def tell(found: Sequence[Found]) -> None:
            backoff.reset()
            self._said[number] = found
            self._metrics.discovered_replicas.labels(source.name).set(len(found))
            self._heard.set()
            self._apply()

        while True:
            try:
                await source.run(tell)
            except Exception as error:  # a kubeconfig that cannot be read, a library's surprise: what is known stays
                log.warning("%s: %s; it is tried again", source.name, error or type(error).__name__, exc_info=True)
            await asyncio.sleep(backoff.next_s())

    def _apply(self) -> None:
        said = [(self._sources[number].name, found) for number, found in sorted(self._said.items())]
        fleet = joined(self.own, said)
        for problem in sorted(fleet.problems - self._problems):
            log.warning("%s", problem)
        self._problems = fleet.problems
        self._fleet.set_replicas(fleet.replicas)
        self._warn(fleet)

    def _warn(self, fleet: Joined) -> None:
        """Each once; of a machine that is gone nothing is withdrawn."""
        there = {ReplicaId(replica.name) for replica in fleet.replicas}
        now = asyncio.get_running_loop().time()
        for replica, warned in fleet.warned.items():
            if self._warned.get(replica) != warned:
                deadline_s = None if warned.within_s is None else now + warned.within_s
                word = Standing(kind=Kind(warned.kind), provider=PROVIDER, ids=(warned.id,), deadline_s=deadline_s)
                self._words.warn(replica, word)
        for replica in self._warned.keys() - fleet.warned.keys():
            if replica in there:
                self._words.unwarn(replica)
        self._warned = dict(fleet.warned)


class Warnings:
    """As notices; of several workers each sees them for itself."""

    def __init__(self, farewells: Farewells) -> None:
        self._farewells = farewells

    def warn(self, replica: ReplicaId, word: Standing) -> None:
        unix_s = datetime.now(UTC).timestamp() - asyncio.get_running_loop().time()
        due_s = word.deadline_s
        self._farewells.join(replica, structs.replace(word, deadline_unix_s=None if due_s is None else unix_s + due_s))

    def unwarn(self, replica: ReplicaId) -> None:
        """What others said of it stands."""
        standing = self._farewells.standing(replica)
        if standing is not None and standing.provider == PROVIDER:
            self._farewells.told(replica, None, why="withdrawn")
