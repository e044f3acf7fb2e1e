"""A gateway over simulated engines that can be made to stand still or to fail, and a record of what runs on them and was moved off."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from backends.backend import EngineCall, EngineReply, ProbeResult, PulledReply, StreamCut
from backends.simulated.backend import SimulatedBackend
from batching.replica import Lifecycle
from batching.request import ReplicaId
from config.schema import Config, ModelKind
from router.app import create_app
from router.engines import build_backend, engine_options
from router.gateway import Gateway
from router.shared.book_in_redis import Book
from tests.support.asgi import Call, chat, post
from tests.support.gateways import Running
from tests.support.simulated_fleet import CHAT, fleet_config

TAUGHT = 25  # answers, before anybody goes by the predictions of a replica


class _Held(PulledReply):
    """An engine's reply whose bytes come while the engine moves."""

    def __init__(self, reply: EngineReply, engine: "StandingEngine", *, stream: bool) -> None:
        self.status, self.content_type, self.headers = reply.status, reply.content_type, reply.headers
        self._reply = reply
        self._engine = engine
        self._stream = stream
        self.last_bytes_s: float | None = None
        self.moved = asyncio.get_running_loop().create_future()
        engine.replies.add(self)

    async def body(self) -> AsyncIterator[bytes]:
        async for data in self._reply.body():
            await self._engine.pass_on(self.moved)
            if self._stream and b'"content":"' in data.replace(b": ", b":"):
                self.last_bytes_s = asyncio.get_running_loop().time()
            yield data

    async def aclose(self) -> None:
        self._engine.replies.discard(self)
        await self._reply.aclose()


class StandingEngine:
    """A simulated engine. While `stands`, what it was asked and is asked gets nothing; its probes are answered as `probes` says."""

    def __init__(self, options: Any) -> None:
        self._engine = SimulatedBackend(options, {"m": ModelKind.CHAT})
        self._moves = asyncio.Event()
        self._moves.set()
        self.probes = "fine"  # fine: ready, with the figures of when it stopped; none: no answer
        self.answers: Callable[[EngineCall], EngineReply | None] = lambda _call: None  # in its place
        self.lag_s = 0.0  # before each answer
        self.tokens_asked: list[float] = []
        self.replies: set[_Held] = set()
        self._last: ProbeResult | None = None

    def stand(self, probes: str = "fine") -> None:
        self._moves.clear()
        self.probes = probes

    def go_on(self) -> None:
        self._moves.set()
        self.probes = "fine"

    async def pass_on(self, moved: "asyncio.Future[None]") -> None:
        if not self._moves.is_set():
            going = asyncio.get_running_loop().create_task(self._moves.wait())
            try:
                await asyncio.wait({going, moved}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                going.cancel()
        if moved.done():
            raise StreamCut("moved off")

    async def send(self, call: EngineCall) -> EngineReply:
        if call.request_id == "penstock-one-token":
            self.tokens_asked.append(asyncio.get_running_loop().time())
        await self._moves.wait()
        if self.lag_s:
            await asyncio.sleep(self.lag_s)
        answer = self.answers(call)
        return _Held(answer or await self._engine.send(call), self, stream=call.stream)

    async def probe(self) -> ProbeResult:
        if not self._moves.is_set():
            if self.probes == "none":
                await self._moves.wait()
            if self._last is not None:
                return self._last
        self._last = await self._engine.probe()
        return self._last

    async def aclose(self) -> None:
        self._moves.set()
        await self._engine.aclose()


@dataclass
class RecordedStreams:
    """The dispatcher's part of the seam, as seen from the engines; a stream that is moved off is cut."""

    engines: Mapping[str, StandingEngine]
    moved: list[tuple[str, float]] = field(default_factory=list)

    def move_off(self, replica: ReplicaId, *, by_s: float | None) -> None:
        assert by_s is None
        self.moved.append((replica, asyncio.get_running_loop().time()))
        for reply in self.engines[replica].replies:
            if not reply.moved.done():
                reply.moved.set_result(None)

    def requests_on(self, replica: ReplicaId) -> int:
        return len(self.engines[replica].replies)

    def last_bytes_s(self, replica: ReplicaId) -> float | None:
        times = [reply.last_bytes_s for reply in self.engines[replica].replies if reply.last_bytes_s is not None]
        return max(times, default=None)


@dataclass
class Standing:
    """The gateway, its engines, and every lifecycle that each replica came into, with its time."""

    running: Running
    engines: Mapping[str, StandingEngine]
    streams: RecordedStreams
    history: list[tuple[float, str, Lifecycle]]

    def states(self, name: str) -> list[str]:
        return [lifecycle.value for _, replica, lifecycle in self.history if replica == name]

    def at(self, name: str, state: str, after_s: float = 0.0) -> float:
        """When it first came into it."""
        return next(at for at, who, lifecycle in self.history if who == name and lifecycle == state and at >= after_s)

    def now(self, name: str) -> str:
        assert self.running.gateway.watch is not None
        return self.running.gateway.watch.replicas[ReplicaId(name)].lifecycle.value

    def begin(self, count: int, tokens: int = 4000) -> list[tuple[Call, "asyncio.Task[Call]"]]:
        """Streams that run until they are hung up, or end."""
        calls = [
            post(self.running.app, CHAT, chat(f"{n}", stream=True, max_tokens=tokens, ignore_eos=True))
            for n in range(count)
        ]
        return [(call, asyncio.get_running_loop().create_task(call.run())) for call in calls]

    async def at_work(self, count: int = 8) -> list[tuple[Call, "asyncio.Task[Call]"]]:
        """Its predictions are worth something, and so many streams are well under way."""
        await self.teach()
        streams = self.begin(count)
        await asyncio.sleep(3)
        return streams

    async def until(self, name: str, state: str) -> None:
        while self.now(name) != state:
            await asyncio.sleep(0.05)

    async def teach(self) -> None:
        """Answers of each replica, one after the other."""
        for _ in range(TAUGHT):
            streams = self.begin(len(self.engines), tokens=20)
            await asyncio.gather(*(task for _, task in streams))


def hang_up(streams: list[tuple[Call, "asyncio.Task[Call]"]]) -> None:
    for call, _ in streams:
        call.hang_up()


@asynccontextmanager
async def standing_fleet(
    *names: str,
    speed: float = 1.0,
    recorded: bool = True,
    engines: Mapping[str, StandingEngine] | None = None,
    book: Book | None = None,
    **sections: Any,
) -> AsyncIterator[Standing]:
    """`recorded` False: streams really move. `engines`: another gateway's, with whom `book` is shared."""
    capacity = {"max_num_seqs": 16, "kv_blocks": 8000, "max_num_batched_tokens": 2048, "max_model_len": 8192}
    config: Config = fleet_config(*names, capacity=capacity, **sections)
    replicas = {replica.name: replica for replica in config.replicas}
    engines = engines or {
        name: StandingEngine(engine_options(replica.model_copy(update={"simulated": replica.simulated.model_copy(update={"speed": speed})})))
        for name, replica in replicas.items()
    }  # fmt: skip

    def factory(replica: Any, whole: Any, http: Any) -> Any:
        return engines.get(replica.name) or build_backend(replica, whole, http)

    books = {} if book is None else {"book_factory": lambda _redis: book}
    gateway = Gateway(config, version="test", backend_factory=factory, **books)
    streams = RecordedStreams(engines)
    if recorded:
        gateway.streams = streams
    async with gateway.running():
        history: list[tuple[float, str, Lifecycle]] = []
        told = gateway.scheduler.set_lifecycle

        def set_lifecycle(replica: ReplicaId, lifecycle: Lifecycle, now: float) -> None:
            history.append((now, str(replica), lifecycle))
            told(replica, lifecycle, now)

        gateway.scheduler.set_lifecycle = set_lifecycle  # type: ignore[method-assign]
        yield Standing(Running(gateway, create_app(gateway, "test")), engines, streams, history)
