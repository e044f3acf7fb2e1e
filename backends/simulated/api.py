"""The engine's API without a transport: a path and a parsed body in, vLLM-shaped bytes out.

Served by `backend.py` in process and by `server.py` over HTTP; both get the same bytes.
"""

import time
from collections.abc import AsyncIterator, Callable, Mapping

from backends.backend import PulledReply
from backends.simulated.answers import GenerationAnswer, embedding_document
from backends.simulated.bodies import EmbeddingJob, GenerationJob, chat_job, completion_job, embedding_job
from backends.simulated.choice import TokenBlocks
from backends.simulated.engine import Engine, EngineBusy, TooLarge
from backends.simulated.errors import Refused, bad_request, not_found
from backends.simulated.options import EngineOptions
from backends.simulated.runner import EngineRunner, TokenStream
from backends.simulated.sequence import EngineSequence
from config.schema import ModelKind

CHAT_PATH = "/v1/chat/completions"
COMPLETIONS_PATH = "/v1/completions"
EMBEDDINGS_PATH = "/v1/embeddings"

JSON = "application/json"
SSE = "text/event-stream; charset=utf-8"

_TOKENS_PER_PIECE = 64  # events joined at most in one piece of a stream that was read late: some 16 KiB


class Reply(PulledReply):
    """An answer that may still be in the making; has the shape of `backends.backend.EngineReply`."""

    def __init__(
        self, status: int, content_type: str, pieces: AsyncIterator[bytes], stream: TokenStream | None = None
    ) -> None:
        self.status = status
        self.content_type = content_type
        self.headers: Mapping[str, str] = {"content-type": content_type}
        self._pieces = pieces
        self._stream = stream

    def body(self) -> AsyncIterator[bytes]:
        return self._pieces

    async def aclose(self) -> None:
        if self._stream is not None:
            self._stream.close()


class EngineApi:
    """One engine and the models it answers for: each name with the kinds of endpoint it serves."""

    def __init__(
        self,
        options: EngineOptions,
        models: Mapping[str, frozenset[ModelKind]],
        *,
        wall_clock: Callable[[], float] = time.time,  # noqa: TID251 - `created` is wall time by OpenAI's definition
    ) -> None:
        self.options = options
        self.models = models
        self.runner = EngineRunner(Engine(options))
        self.wall_clock = wall_clock
        self._context_tokens = options.context_tokens

    def respond(self, path: str, fields: Mapping[str, object], request_id: str) -> Reply:
        """Begin to answer; refusals are replies, too."""
        try:
            if path == EMBEDDINGS_PATH:
                model = self._model(fields, ModelKind.EMBEDDING)
                return self._embed(embedding_job(fields, self._context_tokens), model, request_id)
            if path == CHAT_PATH:
                model = self._model(fields, ModelKind.CHAT)
                return self._generate(chat_job(fields, self._context_tokens), model, f"chatcmpl-{request_id}")
            if path == COMPLETIONS_PATH:
                model = self._model(fields, ModelKind.CHAT)
                return self._generate(completion_job(fields, self._context_tokens), model, f"cmpl-{request_id}")
            raise not_found("Not Found")
        except TooLarge as error:
            return refusal(bad_request(f"The request {error}"))
        except EngineBusy:
            busy = "The engine is currently busy: too many requests are queued. Please retry later."
            return refusal(Refused(503, "ServiceUnavailableError", busy))
        except Refused as refused:
            return refusal(refused)

    def _model(self, fields: Mapping[str, object], kind: ModelKind) -> str:
        name = fields.get("model")
        if name is None:
            name = next(iter(self.models))
        kinds = self.models.get(name) if isinstance(name, str) else None
        if kinds is None:
            raise not_found(f"The model `{name}` does not exist.", "model")
        if kind not in kinds:
            raise bad_request(f"The model `{name}` does not serve this endpoint", "model")
        return str(name)

    def _generate(self, job: GenerationJob, model: str, answer_id: str) -> Reply:
        sequences = [
            EngineSequence(
                seq_id=self.runner.next_id(),
                prompt_tokens=len(job.prompt_ids),
                limit_tokens=choice.limit_tokens,
                finish_reason=choice.finish_reason,
                block_hash=TokenBlocks(job.prompt_ids, choice, self.options.block_size),
                priority=job.priority,
            )
            for choice in job.choices
        ]
        stream = self.runner.submit(sequences)
        answer = GenerationAnswer(job, answer_id=answer_id, model=model, created=int(self.wall_clock()))
        if job.stream:
            return Reply(200, SSE, _events(answer, stream), stream)
        return Reply(200, JSON, _document(answer, stream), stream)

    def _embed(self, job: EmbeddingJob, model: str, request_id: str) -> Reply:
        sequences = [
            EngineSequence(
                seq_id=self.runner.next_id(),
                prompt_tokens=len(ids),
                limit_tokens=0,
                finish_reason="stop",
                block_hash=_not_cached,
            )
            for ids in job.inputs
        ]
        stream = self.runner.submit(sequences)
        created = int(self.wall_clock())
        document = embedding_document(job, answer_id=f"embd-{request_id}", model=model, created=created)
        return Reply(200, JSON, _after(stream, document), stream)


def refusal(refused: Refused) -> Reply:
    return Reply(refused.status, JSON, _single(refused.body()))


def _not_cached(block: int) -> None:  # noqa: ARG001 - the shape of kv_cache.BlockHash
    return None


async def _single(piece: bytes) -> AsyncIterator[bytes]:
    yield piece


async def _after(stream: TokenStream, piece: bytes) -> AsyncIterator[bytes]:
    try:
        while not stream.ended:
            await stream.progress()
        yield piece
    finally:
        stream.close()


async def _events(answer: GenerationAnswer, stream: TokenStream) -> AsyncIterator[bytes]:
    head = answer.opening()
    completion_tokens = 0
    try:
        while not stream.ended:
            for choice, start, stop, finish_reason in await stream.progress():
                completion_tokens += stop - start
                for first in range(start, stop, _TOKENS_PER_PIECE):
                    tokens = range(first, min(first + _TOKENS_PER_PIECE, stop))
                    events = [answer.token(choice, t, finish_reason if t == stop - 1 else None) for t in tokens]
                    yield head + b"".join(events)
                    head = b""
        yield answer.closing(completion_tokens=completion_tokens, cached_tokens=stream.cached_tokens)
    finally:
        stream.close()


async def _document(answer: GenerationAnswer, stream: TokenStream) -> AsyncIterator[bytes]:
    completion_tokens = 0
    reasons = [""] * len(stream.sequences)
    try:
        while not stream.ended:
            for choice, start, stop, finish_reason in await stream.progress():
                completion_tokens += stop - start
                reasons[choice] = finish_reason or ""
        yield answer.document(
            finish_reasons=reasons, completion_tokens=completion_tokens, cached_tokens=stream.cached_tokens
        )
    finally:
        stream.close()
