"""The simulated engine as a backend in this very process: what a newcomer runs without a GPU, what tests run under virtual time."""

import time
from collections.abc import Callable, Mapping

from backends.backend import ConnectFailed, EngineCall, EngineReply, ProbeResult, ServedModel
from backends.simulated.api import EngineApi
from backends.simulated.options import EngineOptions
from config.schema import ModelKind


class SimulatedBackend:
    """Implements `backends.backend.Backend`. Closing it cuts its streams, as a machine that goes away would."""

    def __init__(
        self,
        options: EngineOptions,
        models: Mapping[str, ModelKind] | None = None,  # none: `options.model`, for chat
        *,
        wall_clock: Callable[[], float] = time.time,  # noqa: TID251 - `created` is wall time by OpenAI's definition
    ) -> None:
        self._kinds = dict(models or {options.model: ModelKind.CHAT})
        kinds = {name: frozenset({kind}) for name, kind in self._kinds.items()}
        self._options = options
        self._api = EngineApi(options, kinds, wall_clock=wall_clock)

    async def send(self, call: EngineCall) -> EngineReply:
        if self._api.runner.closed:
            raise ConnectFailed("the simulated engine is closed")
        call.may_go()
        return self._api.respond(call.path, call.fields, call.request_id)

    async def probe(self) -> ProbeResult:
        engine = self._api.runner.engine
        options = self._options
        figures = engine.statistics()
        closed = self._api.runner.closed
        return ProbeResult(
            ready=not closed and not engine.asleep,
            detail="closed" if closed else "asleep" if engine.asleep else "",
            asleep=engine.asleep,
            models=tuple(
                ServedModel(name=name, kind=kind, max_model_len=options.context_tokens)
                for name, kind in self._kinds.items()
            ),
            metrics={
                "running": figures.running,
                "waiting": figures.waiting,
                "kv_usage_ratio": figures.kv_usage_ratio,
                "preemptions_total": figures.preemptions_total,
                "prefix_queries_total": figures.prefix_queries_total,
                "prefix_hits_total": figures.prefix_hits_total,
                "iteration_total": figures.iteration_total,
            },
            max_num_seqs=options.max_num_seqs,
            max_num_batched_tokens=options.max_num_batched_tokens,
            kv_blocks=engine.kv.total_blocks,
            block_size=options.block_size,
        )

    def sleep(self) -> None:
        """Free all KV memory and stop; what runs is recomputed after `wake`."""
        self._api.runner.sleep()

    def wake(self) -> None:
        self._api.runner.wake()

    async def aclose(self) -> None:
        await self._api.runner.aclose()
