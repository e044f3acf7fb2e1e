"""/v1/embeddings on a batchable Triton model: rows of all requests go together, one ModelInfer a batch.

`backends.microbatch` decides when a batch closes; this holds its timer and its sends. A request that is cancelled takes its rows
out; a batch that fails fails only its own requests, and one bad row among several requests fails only its own.
"""

import asyncio
import base64
import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from backends.backend import EngineCall, EngineReply, FirstByteTimeout, UpstreamError
from backends.microbatch import Batch, MicroBatcher
from backends.triton.errors import Refusal, unsupported
from backends.triton.inference import EngineFault, InferenceClient, ModelInfo, Tensor
from backends.triton.model import Document, ModelHealth
from backends.triton.reshape import estimated_tokens
from config.schema import MicroBatch, ModelSpec, Upstream

EMBEDDINGS_PATH = "/v1/embeddings"
_MAX_INPUTS = 2048  # OpenAI's bound for one request


class Job:
    """One request's rows and where their vectors go."""

    def __init__(self, texts: Sequence[str], done: asyncio.Future[None]) -> None:
        self.rows = [
            Row(job=self, text=t.encode("utf-8", "replace"), tokens=estimated_tokens(t), index=i)
            for i, t in enumerate(texts)
        ]
        self.vectors: list[bytes] = [b""] * len(texts)
        self.missing = len(texts)
        self.done = done

    def give(self, index: int, vector: bytes) -> None:
        """One row's vector; the last one wakes the request."""
        self.vectors[index] = vector
        self.missing -= 1
        if self.missing == 0 and not self.done.done():
            self.done.set_result(None)

    def fail(self, error: Refusal | UpstreamError) -> None:
        """The request fails as a whole, at its first row that does."""
        if not self.done.done():
            self.done.set_exception(error)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Row:
    """One text of one request."""

    job: Job
    text: bytes
    tokens: int
    index: int


class EmbeddingModel:
    """An `embedding` model."""

    def __init__(self, *, client: InferenceClient, spec: ModelSpec, upstream: Upstream, microbatch: MicroBatch) -> None:
        self.kind = spec.kind.value
        self.health = ModelHealth(client, spec.name)
        self._client = client
        self._spec = spec
        self._upstream = upstream
        self._settings = microbatch
        self._batcher: MicroBatcher[Row] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._sends: dict[asyncio.Task[None], list[Row]] = {}

    async def send(self, call: EngineCall) -> EngineReply:
        texts, encoding = _wanted(call, self._spec.name)
        try:
            async with asyncio.timeout(self._upstream.first_byte_timeout_s):
                info = await self.health.info()
                call.may_go()
                job = Job(texts, asyncio.get_running_loop().create_future())
                await self._embed(job, info)
        except EngineFault as fault:
            raise self.health.failed(fault) from fault
        except TimeoutError as error:
            self.health.silent()
            raise FirstByteTimeout("no answer in time") from error
        return Document(200, _answer(job, encoding, str(call.fields.get("model", self._spec.name))))

    async def check(self) -> None:
        """One row."""
        info = await self.health.info()
        await self._client.infer_rows(
            self._spec.name, [self._tensor(info, [b"ping"])], output=self._spec.tensors.embedding, rows=1
        )

    async def aclose(self) -> None:
        """Stop all sends, and the open batch with them: requests that still wait fail."""
        if self._batcher is not None:
            self._launch(self._batcher.due(math.inf))
        self._arm()
        sends = list(self._sends)
        for task, rows in self._sends.items():
            task.cancel()
            _fail(rows, "the backend was closed")  # here, for a task cancelled before its first step runs no handler
        await asyncio.gather(*sends, return_exceptions=True)

    async def _embed(self, job: Job, info: ModelInfo) -> None:
        loop = asyncio.get_running_loop()
        batcher = self._open_batcher(info)
        for row in job.rows:
            self._launch(batcher.add(row, row.tokens, loop.time()))
            while (batch := batcher.due(loop.time())) is not None:
                self._launch(batch)
        self._arm()
        try:
            await job.done
        finally:
            job.done.cancel()  # no-op once it is done; else tells the batches in flight that nobody waits
            for row in job.rows:
                batcher.remove(row)
            for task, rows in self._sends.items():
                if all(row.job.done.done() for row in rows):
                    task.cancel()

    def _open_batcher(self, info: ModelInfo) -> MicroBatcher[Row]:
        if self._batcher is None:
            self._batcher = MicroBatcher(
                max_tokens=self._settings.max_tokens,
                max_size=min(self._settings.max_size, max(1, info.max_batch_size)),
                max_age_s=self._settings.max_age_s,
            )
        return self._batcher

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._batcher.next_deadline() if self._batcher is not None else None
        if deadline is not None:
            self._timer = asyncio.get_running_loop().call_at(deadline, self._on_deadline)

    def _on_deadline(self) -> None:
        loop = asyncio.get_running_loop()
        # A timer may fire a clock tick early; the deadline it was armed for has come all the same.
        deadline = self._batcher.next_deadline() if self._batcher is not None else None
        if self._batcher is not None and deadline is not None:
            self._launch(self._batcher.due(max(deadline, loop.time())))
        self._timer = None
        self._arm()

    def _launch(self, batch: Batch[Row] | None) -> None:
        if batch is None:
            return
        rows = list(batch.items)
        task = asyncio.get_running_loop().create_task(self._deliver(rows))
        self._sends[task] = rows  # owned here, awaited by aclose
        task.add_done_callback(self._sends.pop)

    async def _deliver(self, rows: list[Row]) -> None:
        try:
            await self._deliver_or_split(rows)
        except BaseException:
            # Cancelled by aclose, or a mistake of ours: whoever waits must not wait for ever.
            _fail(rows, "the batch was given up")
            raise

    async def _deliver_or_split(self, rows: list[Row]) -> None:
        rows = [row for row in rows if not row.job.done.done()]
        if not rows:
            return
        error = await self._attempt(rows)
        if error is None:
            return
        jobs = {id(row.job): row.job for row in rows}
        if isinstance(error, Refusal) and error.status == 400 and len(jobs) > 1:
            # Somebody's row is bad. Each request alone, so that its neighbours do not fail with it.
            for job in jobs.values():
                await self._deliver_or_split([row for row in rows if row.job is job])
            return
        for job in jobs.values():
            job.fail(error)

    async def _attempt(self, rows: list[Row]) -> Refusal | UpstreamError | None:
        """One ModelInfer; what it failed with."""
        try:
            async with asyncio.timeout(self._upstream.first_byte_timeout_s):
                tensor = self._tensor(await self.health.info(), [row.text for row in rows])
                vectors = await self._client.infer_rows(
                    self._spec.name, [tensor], output=self._spec.tensors.embedding, rows=len(rows)
                )
        except TimeoutError:
            self.health.silent()
            return FirstByteTimeout("no answer in time")
        except EngineFault as fault:
            return self.health.failed(fault)
        except Refusal as refusal:
            return refusal
        self.health.answered()
        for row, vector in zip(rows, vectors, strict=True):
            row.job.give(row.index, vector)
        return None

    def _tensor(self, info: ModelInfo, texts: list[bytes]) -> Tensor:
        name = self._spec.tensors.embedding_input
        if name not in info.inputs:
            raise Refusal(500, f"The model has no input {name!r}", code="engine_error")
        shape = (len(texts), 1) if info.inputs[name].rank > 1 else (len(texts),)
        return Tensor(name=name, datatype=info.inputs[name].datatype, shape=shape, values=tuple(texts))


def _fail(rows: Sequence[Row], why: str) -> None:
    for row in rows:
        row.job.fail(UpstreamError(why))


def _wanted(call: EngineCall, model: str) -> tuple[list[str], str]:
    """The texts and the encoding; raises the 400 for what an embedding model of text cannot do."""
    if call.path != EMBEDDINGS_PATH:
        raise Refusal(400, f"The model `{model}` does not answer {call.path}", code="invalid_value", param="model")
    if call.fields.get("dimensions") is not None:
        raise unsupported("dimensions", "is not supported by this model's backend")
    encoding = call.fields.get("encoding_format") or "float"
    if encoding not in ("float", "base64"):
        raise Refusal(400, "`encoding_format` must be float or base64", code="invalid_value", param="encoding_format")
    return _texts(call.fields.get("input")), str(encoding)


def _texts(value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or len(texts) > _MAX_INPUTS:
        raise Refusal(
            400,
            f"`input` must be a string or a list of 1 to {_MAX_INPUTS} strings",
            code="invalid_value",
            param="input",
        )
    if any(isinstance(text, int | list) for text in texts):
        raise unsupported("input", "must be text: this model's backend takes no token arrays")
    if not all(isinstance(text, str) and text for text in texts):
        raise Refusal(400, "`input` must hold strings that are not empty", code="invalid_value", param="input")
    return texts


def _answer(job: Job, encoding: str, model: str) -> bytes:
    tokens = sum(row.tokens for row in job.rows)
    data = [
        {"object": "embedding", "index": index, "embedding": _encoded(vector, encoding)}
        for index, vector in enumerate(job.vectors)
    ]
    usage: Mapping[str, int] = {"prompt_tokens": tokens, "total_tokens": tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": model, "usage": usage})


def _encoded(vector: bytes, encoding: str) -> str | list[float]:
    """OpenAI's two forms; base64 is of the little-endian FP32 bytes as they came."""
    return base64.b64encode(vector).decode() if encoding == "base64" else array("f", vector).tolist()
