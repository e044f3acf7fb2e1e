"""An engine whose streams can be broken at an exact event, in every way in which engines break."""

from collections.abc import AsyncIterator, Callable, Mapping

from backends.backend import Backend, EngineCall, EngineReply, ProbeResult, PulledReply, StreamCut
from backends.simulated.backend import SimulatedBackend
from backends.upstream.sse import SseSplitter
from config.schema import Config, ModelKind
from router.engines import engine_options
from tests.support.fake_engine import DONE, chunk, sse

CORE_DIED = sse({"error": {"message": "EngineCore encountered an issue", "type": "InternalServerError", "code": 500}})
ENDINGS: Mapping[str, Callable[[bytes], AsyncIterator[bytes]]]


async def _cut(event: bytes) -> AsyncIterator[bytes]:
    """The connection breaks between two events."""
    raise StreamCut("cut")
    yield event


async def _cut_inside(event: bytes) -> AsyncIterator[bytes]:
    """... in the middle of one."""
    yield event[: len(event) // 2]
    raise StreamCut("cut")


async def _error(_event: bytes) -> AsyncIterator[bytes]:
    """The engine's process died behind its server."""
    yield CORE_DIED
    yield DONE


async def _just_ends(_event: bytes) -> AsyncIterator[bytes]:
    return
    yield b""


async def _done_without_reason(_event: bytes) -> AsyncIterator[bytes]:
    yield DONE


async def _aborted(_event: bytes) -> AsyncIterator[bytes]:
    """A server that shuts down ends what it runs so."""
    yield chunk("", finish="abort")
    yield DONE


async def _garbage(_event: bytes) -> AsyncIterator[bytes]:
    yield b"data: {not json}\n\n"


ENDINGS = {
    "cut": _cut,
    "cut inside an event": _cut_inside,
    "error": _error,
    "just ends": _just_ends,
    "done without reason": _done_without_reason,
    "aborted": _aborted,
    "garbage": _garbage,
}


class BreakingEngine:
    """An engine; each of `breaks` (after so many events, ending) meets one stream, in turn; then it is well."""

    def __init__(self, engine: Backend, *breaks: tuple[int, str]) -> None:
        self.engine = engine
        self.breaks = list(breaks)
        self.calls: list[EngineCall] = []
        self.broken = 0  # streams, so far

    async def send(self, call: EngineCall) -> EngineReply:
        self.calls.append(call)
        reply = await self.engine.send(call)
        if self.breaks and call.stream and reply.status == 200:
            return _Broken(reply, self, *self.breaks.pop(0))
        return reply

    async def probe(self) -> ProbeResult:
        return await self.engine.probe()

    async def aclose(self) -> None:
        await self.engine.aclose()

    @property
    def running(self) -> int:
        """Of a simulated engine."""
        assert isinstance(self.engine, SimulatedBackend)
        figures = self.engine._api.runner.engine.statistics()
        return figures.running + figures.waiting


def breaking_simulated(config: Config, name: str, *breaks: tuple[int, str]) -> BreakingEngine:
    """A simulated engine as `config` has it."""
    replica = next(replica for replica in config.replicas if replica.name == name)
    return BreakingEngine(SimulatedBackend(engine_options(replica), {"m": ModelKind.CHAT}), *breaks)


class _Broken(PulledReply):
    def __init__(self, reply: EngineReply, engine: BreakingEngine, after: int, ending: str) -> None:
        self.status, self.content_type, self.headers = reply.status, reply.content_type, reply.headers
        self._reply = reply
        self._engine = engine
        self._after = after
        self._ending = ending
        self._broken = False

    async def body(self) -> AsyncIterator[bytes]:
        if self._broken:
            return
        splitter = SseSplitter()
        seen = 0
        async for data in self._reply.body():
            for event in splitter.feed(data):
                if seen == self._after:
                    self._broken = True
                    self._engine.broken += 1
                    async for last in ENDINGS[self._ending](event):
                        yield last
                    return
                seen += 1
                yield event

    async def aclose(self) -> None:
        await self._reply.aclose()
