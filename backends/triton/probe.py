"""One look at a Triton server: ready, its models ready and alive, its metrics.

READY is not believed where a request met a dead or silent model: then the model itself is asked, until it answers again.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict

import httpx

from backends.backend import ProbeResult, ServedModel
from backends.engine_metrics import EngineFigures, figures
from backends.triton.errors import Refusal
from backends.triton.inference import EngineFault, InferenceClient
from backends.triton.model import TritonModel

_MAX_METRICS_BYTES = 8 * 2**20  # a server with hundreds of models; more is not a metrics page
_FIELDS_OF_THEIR_OWN = ("asleep", "kv_blocks", "block_size")  # of ProbeResult; the other figures are `metrics`


class Prober:
    """Looks at one server; every look ends within `timeout_s`."""

    def __init__(
        self,
        *,
        client: InferenceClient,
        models: Mapping[str, TritonModel],
        metrics_url: str | None,
        http: httpx.AsyncClient,
        timeout_s: float,
    ) -> None:
        self._client = client
        self._models = models
        self._metrics_url = metrics_url
        self._http = http
        self._timeout_s = timeout_s

    async def look(self) -> ProbeResult:
        try:
            async with asyncio.timeout(self._timeout_s):
                trouble = await self._trouble()
        except TimeoutError:
            trouble = "no answer within the probe's timeout"
        except EngineFault as fault:
            trouble = f"the server cannot be reached ({fault.code or 'error'})"
        said = await self._figures()
        return ProbeResult(
            ready=trouble is None,
            detail=trouble or "",
            models=tuple(ServedModel(name=name, kind=model.kind) for name, model in self._models.items()),
            metrics={
                name: value
                for name, value in asdict(said).items()
                if value is not None and name not in _FIELDS_OF_THEIR_OWN
            },
            kv_blocks=said.kv_blocks,
            block_size=said.block_size,
        )

    async def _trouble(self) -> str | None:
        """Why the server is not ready; None: it is."""
        if not await self._client.server_ready():
            return "the server is not ready"
        for name, model in self._models.items():
            if not await self._client.model_ready(name):
                return f"model {name} is not ready"
            if model.health.suspicion is not None and not await self._alive(model):
                return f"model {name}: {model.health.suspicion}"
        return None

    async def _alive(self, model: TritonModel) -> bool:
        try:
            await model.check()
        except EngineFault as fault:
            model.health.failed(fault)
            return False
        except Refusal:
            return False
        model.health.answered()
        return True

    async def _figures(self) -> EngineFigures:
        """What the metrics page says; nothing, when it cannot be had: that alone does not make a server unready."""
        if self._metrics_url is None:
            return EngineFigures()
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await self._http.get(self._metrics_url)
        except (httpx.HTTPError, TimeoutError):
            return EngineFigures()
        if answer.status_code != httpx.codes.OK or len(answer.content) > _MAX_METRICS_BYTES:
            return EngineFigures()
        return figures(answer.text)
