"""vLLM, and any engine that speaks OpenAI's HTTP API: requests and probes over our own connections.

Decides what goes upstream besides the body, what of the answer's head comes back, and when an engine counts as ready. Redirects
are never followed, and nothing said here names an address.
"""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any, Final, Self
from urllib.parse import urlsplit

import msgspec

from backends.backend import ConnectFailed, EngineCall, ProbeResult, ServedModel, Sink, UpstreamError
from backends.engine_metrics import EngineFigures, figures
from backends.upstream.pool import Pool, PoolStatistics
from backends.upstream.response import Response
from config.schema import ReplicaConfig, Upstream

# What a client may see of an engine's head; the rest (server, date, cookies, internal ids) is nobody's business.
_KEPT_HEADERS: Final = ("content-type", "retry-after")
# A vLLM metrics page is 55 kB for one engine and one model; 4 MiB leaves room for dozens and bounds a page that never ends.
_MAX_PROBE_BYTES: Final = 4 * 2**20
_METRIC_NAMES: Final = (
    "running", "waiting", "kv_usage_ratio", "preemptions_total", "prefix_queries_total", "prefix_hits_total", "iteration_total"
)  # fmt: skip


class HttpReply:
    """An EngineReply whose body is the engine's, byte for byte."""

    __slots__ = ("_response", "content_type", "status")

    def __init__(self, response: Response) -> None:
        self._response = response
        self.status = response.status
        self.content_type = response.headers.get("content-type", "")
        if response.status < HTTPStatus.BAD_REQUEST:  # a refusal may say when to come back; nothing else is asked for
            response.forget_head()

    @property
    def headers(self) -> Mapping[str, str]:
        said = self._response.headers
        return {name: said[name] for name in _KEPT_HEADERS if name in said}

    def body(self) -> AsyncIterator[bytes]:
        return _Body(self._response)

    def pour(self, sink: Sink) -> Coroutine[Any, Any, bool]:
        return self._response.pour(sink)

    async def aclose(self) -> None:
        self._response.close()


class _Body:
    """Iterates over what each read finds; not a generator, so that nothing is left to finalise when a reader stops early."""

    __slots__ = ("_response",)

    def __init__(self, response: Response) -> None:
        self._response = response

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        data = await self._response.read()
        if not data:
            raise StopAsyncIteration
        return data


@dataclass(frozen=True, slots=True, kw_only=True)
class _Page:
    """What a probe's GET came back with; `error` says why there is no status."""

    status: int | None = None
    body: bytes = b""
    error: str = ""

    @property
    def ok(self) -> bool:
        return self.status == HTTPStatus.OK


class HttpBackend:
    """One engine behind an OpenAI-compatible HTTP API. Owns its connections."""

    def __init__(
        self,
        replica: ReplicaConfig,
        *,
        upstream: Upstream,
        probe_timeout_s: float = 2.0,
        pool: Pool | None = None,
    ) -> None:
        assert replica.url is not None, "the schema demands a url for HTTP replicas"
        unix = replica.url.startswith("unix:")
        # OpenAI clients are given base URLs with /v1; our paths begin with it.
        base_url = replica.url if unix else replica.url.rstrip("/").removesuffix("/v1")
        self._base_path = "" if unix else urlsplit(base_url).path
        self._metrics: tuple[Pool, str] | None = None
        if replica.metrics_url is not None:
            self._metrics = Pool(replica.metrics_url, settings=upstream), urlsplit(replica.metrics_url).path or "/"
        self._kinds = {model.name: model.kind.value for model in replica.models}
        self._authorization = {"authorization": f"Bearer {replica.api_key}"} if replica.api_key else {}
        self._probe_timeout_s = probe_timeout_s
        self._pool = pool or Pool(base_url, settings=upstream)

    async def send(self, call: EngineCall) -> HttpReply:
        headers = {
            **call.headers,
            "content-type": "application/json",
            "accept": "text/event-stream" if call.stream else "application/json",
            "accept-encoding": "identity",  # compressed events would be held back to fill a block
            "x-request-id": call.request_id,
            **self._authorization,
        }
        target = self._base_path + call.path
        response = await self._pool.send("POST", target, headers=headers, body=call.body, may_go=call.may_go)
        return HttpReply(response)

    async def probe(self) -> ProbeResult:
        """Three looks at once: alive, models, load. Only the first decides on `ready`, except that a refused key does too."""
        async with asyncio.TaskGroup() as looks:
            health_look = looks.create_task(self._get("/health"))
            models_look = looks.create_task(self._get("/v1/models"))
            metrics_look = looks.create_task(self._get_metrics())
        health, models, metrics = health_look.result(), models_look.result(), metrics_look.result()
        if health.status == HTTPStatus.NOT_FOUND:  # an engine without /health
            health = models
        said = figures(metrics.body.decode("utf-8", "replace")) if metrics.ok else EngineFigures()
        detail = _why_not_ready(health, models)
        return ProbeResult(
            ready=not detail,
            detail=detail,
            asleep=bool(said.asleep),
            models=_served_models(models.body, self._kinds) if models.ok else (),
            metrics={name: v for name, v in asdict(said).items() if name in _METRIC_NAMES and v is not None},
            kv_blocks=said.kv_blocks,
            block_size=said.block_size,
        )

    def statistics(self) -> PoolStatistics:
        return self._pool.statistics()

    async def aclose(self) -> None:
        await self._pool.aclose()
        if self._metrics is not None:
            await self._metrics[0].aclose()

    async def _get_metrics(self) -> _Page:
        if self._metrics is None:
            return await self._get("/metrics")
        pool, target = self._metrics
        return await self._look(pool, target, {})  # perhaps another host: not the engine's key

    async def _get(self, path: str) -> _Page:
        return await self._look(self._pool, self._base_path + path, self._authorization)

    async def _look(self, pool: Pool, target: str, headers: Mapping[str, str]) -> _Page:
        """Over the connections that requests use, which so are warm; a look that takes too long costs its own only."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._probe_timeout_s):
                response = await pool.send("GET", target, headers={**headers, "accept-encoding": "identity"})
                try:
                    while data := await response.read():
                        body += data
                        if len(body) > _MAX_PROBE_BYTES:
                            return _Page(error="answered without end")
                finally:
                    response.close()
        except TimeoutError:
            return _Page(error=f"no answer within {self._probe_timeout_s:g} s")
        except ConnectFailed as error:
            return _Page(error=f"no answer within {self._probe_timeout_s:g} s" if error.late else "no connection")
        except UpstreamError:
            return _Page(error="no readable answer")
        return _Page(status=response.status, body=bytes(body))


def _why_not_ready(health: _Page, models: _Page) -> str:
    """Empty: ready."""
    if health.error:
        return f"health: {health.error}"
    if not health.ok:
        return f"health: answered {health.status}"
    if models.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        return f"models: answered {models.status}; check the replica's api_key"
    return ""


def _served_models(body: bytes, kinds: Mapping[str, str]) -> tuple[ServedModel, ...]:
    """The entries of a model list; what is not one is passed over."""
    try:
        document = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return ()
    entries = document.get("data") if isinstance(document, dict) else None
    if not isinstance(entries, list):
        return ()
    return tuple(
        ServedModel(
            name=entry["id"],
            kind=kinds.get(entry["id"], "chat"),
            max_model_len=_positive_int(entry.get("max_model_len")),
            parent=entry["parent"] if isinstance(entry.get("parent"), str) else None,
        )
        for entry in entries
        if isinstance(entry, dict) and isinstance(entry.get("id"), str) and entry["id"]
    )


def _positive_int(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
