"""Runs one pure engine in an event loop: sleeps each step's time on the loop's clock and tells the streams what is ready.

Only counts are handed over, so a client that reads nothing holds a few integers however long its answer grows.
"""

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from backends.backend import StreamCut
from backends.simulated.engine import Engine, EngineBusy, TooLarge
from backends.simulated.sequence import EngineSequence

# A host that could not keep the engine's pace may catch up so much by steps without sleep; beyond it, time is lost.
_MAX_LAG_S = 0.25


class Span(NamedTuple):
    """Tokens `start` to `stop` of one choice became ready; with a finish reason they are its last."""

    choice: int
    start: int
    stop: int
    finish_reason: str | None


class TokenStream:
    """Progress of one request's sequences. One reader; `close` any time, more than once."""

    def __init__(self, runner: "EngineRunner", sequences: Sequence[EngineSequence]) -> None:
        self.sequences = sequences
        self._runner = runner
        self._taken = [0] * len(sequences)
        self._ready = [0] * len(sequences)
        self._changed: set[int] = set()  # choices with news
        self._open = set(range(len(sequences)))
        self._finish: list[str | None] = [None] * len(sequences)
        self._waiter: asyncio.Future[None] | None = None
        self._cut = False

    @property
    def cached_tokens(self) -> int:
        return self.sequences[0].cached_tokens or 0

    @property
    def ended(self) -> bool:
        """Every choice has finished and was read to its end."""
        return not self._open and not self._changed

    async def progress(self) -> list[Span]:
        """What became ready since the last call, at least one span; raises `StreamCut` once the engine is gone."""
        while not self._changed:
            if self._cut:
                raise StreamCut("the simulated engine stopped")
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        spans = [Span(c, self._taken[c], self._ready[c], self._finish[c]) for c in sorted(self._changed)]
        self._changed.clear()
        for span in spans:
            self._taken[span.choice] = span.stop
        return spans

    def close(self) -> None:
        """Stop what still runs; a reader that waits sees `StreamCut`."""
        if self._open:
            for choice in self._open:
                self._runner.abort(self.sequences[choice].seq_id)
            self.cut()

    def advance(self, choice: int, token: int, finish_reason: str | None) -> None:
        """The runner's side: token number `token` is there."""
        self._ready[choice] = token + 1
        self._changed.add(choice)
        if finish_reason is not None:
            self._finish[choice] = finish_reason
            self._open.discard(choice)
        self._wake()

    def cut(self) -> None:
        """The runner's side: nothing more will come."""
        self._cut = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EngineRunner:
    """Owns one engine and the task that steps it; the task starts with the first request and rests when all are done."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.closed = False
        self._task: asyncio.Task[None] | None = None
        self._routes: dict[int, tuple[TokenStream, int]] = {}  # sequence -> its stream and choice
        self._last_id = 0

    def next_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def submit(self, sequences: Sequence[EngineSequence]) -> TokenStream:
        """Queue a request's sequences, all or none; raises what `Engine.add` raises."""
        if self.closed:
            raise EngineBusy
        stream = TokenStream(self, sequences)
        now = asyncio.get_running_loop().time()
        try:
            for choice, sequence in enumerate(sequences):
                self.engine.add(sequence, now)
                self._routes[sequence.seq_id] = (stream, choice)
        except (EngineBusy, TooLarge):
            stream.close()
            raise
        self._start()
        return stream

    def abort(self, seq_id: int) -> None:
        self.engine.abort(seq_id)
        self._routes.pop(seq_id, None)

    def sleep(self) -> None:
        self.engine.sleep()

    def wake(self) -> None:
        self.engine.wake()
        self._start()

    async def aclose(self) -> None:
        """Stop; streams still open end with `StreamCut`, as if the engine's process were gone."""
        self.closed = True
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()
        self._cut_streams()

    def _start(self) -> None:
        if not self.closed and (self._task is None or self._task.done()):
            self._task = asyncio.get_running_loop().create_task(self._run(), name="simulated-engine")

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        end_s = loop.time()
        at_rest = False
        try:
            while (step := self.engine.step(loop.time())) is not None:
                end_s = max(end_s, loop.time() - _MAX_LAG_S) + step.duration_s
                await asyncio.sleep(max(end_s - loop.time(), 0.0))
                for seq_id, token, finish_reason in step.emissions:
                    self._deliver(seq_id, token, finish_reason)
            at_rest = True
        finally:
            if not at_rest:
                self._cut_streams()  # nobody else would ever wake them

    def _deliver(self, seq_id: int, token: int, finish_reason: str | None) -> None:
        route = self._routes.get(seq_id)
        if route is None:
            return  # aborted while the step ran
        stream, choice = route
        if finish_reason is not None:
            del self._routes[seq_id]
        stream.advance(choice, token, finish_reason)

    def _cut_streams(self) -> None:
        for stream, _ in list(self._routes.values()):
            stream.cut()
        self._routes.clear()
