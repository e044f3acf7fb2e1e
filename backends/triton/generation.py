"""Text generation on a decoupled Triton model: one stream_infer a request, its responses re-shaped as they come.

The first response is awaited before there is a reply, so that whatever fails until then is an HTTP status. After it, an engine's
error becomes an error event, and silence or a broken connection StreamCut.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping

from backends.backend import ClosedEarly, EngineCall, EngineReply, FirstByteTimeout, PulledReply, StreamCut
from backends.chat_template import ChatTemplate, TemplateError
from backends.triton.errors import Refusal
from backends.triton.inference import EngineFault, InferenceClient, Outputs, ResponseStream
from backends.triton.model import Document, ModelHealth
from backends.triton.reshape import CHAT_PATH, Reshaper, Transcript, estimated_tokens
from backends.triton.tensors import generation_tensors, refuse_unsupported, sampling
from config.schema import ModelSpec, Upstream

_COMPLETIONS_PATH = "/v1/completions"


class GenerationModel:
    """A `chat` model: answers chat and plain completions."""

    def __init__(
        self,
        *,
        client: InferenceClient,
        spec: ModelSpec,
        upstream: Upstream,
        template: ChatTemplate,
        max_model_len: int | None,
        wall_time_s: Callable[[], float],
    ) -> None:
        self.kind = spec.kind.value
        self.health = ModelHealth(client, spec.name)
        self._client = client
        self._spec = spec
        self._upstream = upstream
        self._template = template
        self._max_model_len = max_model_len
        self._wall_time_s = wall_time_s

    async def send(self, call: EngineCall) -> EngineReply:
        refuse_unsupported(call.fields)
        prompt = self._prompt(call)
        room = None if self._max_model_len is None else self._max_model_len - estimated_tokens(prompt)
        parameters = sampling(call.fields, chat=call.path == CHAT_PATH, room_tokens=room)
        transcript = Transcript(
            text_output=self._spec.tensors.text_output,
            prompt=prompt,
            max_tokens=int(str(parameters["max_tokens"])),
            streamed=call.stream,
        )
        reader = await self._start(call, prompt, parameters)
        if call.stream:
            return GenerationStream(reader, transcript, self._reshaper(call))
        try:
            return await self._whole(reader, transcript, self._reshaper(call))
        finally:
            reader.close()

    async def check(self) -> None:
        """One token, or the first sign of one."""
        parameters = {"max_tokens": 1}
        tensors = generation_tensors(
            await self.health.info(), self._spec.tensors, prompt="ping", stream=True, parameters=parameters
        )
        responses = self._client.stream(self._spec.name, tensors, request_id="probe", headers={})
        try:
            await responses.next()
        finally:
            responses.cancel()

    async def aclose(self) -> None:
        """Replies hold the streams; there is nothing else."""

    async def _start(self, call: EngineCall, prompt: str, parameters: Mapping[str, object]) -> "_Reader":
        """A stream whose first response is there."""
        with contextlib.ExitStack() as undo:
            try:
                async with asyncio.timeout(self._upstream.first_byte_timeout_s):
                    reader = await self._open(call, prompt, parameters)
                    undo.callback(reader.close)
                    await reader.start()
            except TimeoutError as error:
                self.health.silent()
                raise FirstByteTimeout("no answer in time") from error
            except EngineFault as fault:
                raise self.health.failed(fault) from fault
            undo.pop_all()  # from here on the reply owns the reader
        self.health.answered()
        return reader

    async def _open(self, call: EngineCall, prompt: str, parameters: Mapping[str, object]) -> "_Reader":
        tensors = generation_tensors(
            await self.health.info(), self._spec.tensors, prompt=prompt, stream=call.stream, parameters=parameters
        )
        call.may_go()
        responses = self._client.stream(self._spec.name, tensors, request_id=call.request_id, headers=call.headers)
        return _Reader(responses, self.health, self._upstream.stall_timeout_s)

    async def _whole(self, reader: "_Reader", transcript: Transcript, reshaper: Reshaper) -> Document:
        texts: list[str] = []
        try:
            while (outputs := await reader.next()) is not None:
                texts.append(transcript.take(outputs))
        except StreamCut as cut:
            # Nothing reached the client yet, so to the caller this is an answer that never came.
            raise (FirstByteTimeout if isinstance(cut, _Stalled) else ClosedEarly)(str(cut)) from cut
        texts.append(transcript.rest())
        return Document(200, reshaper.whole("".join(texts), transcript.finish_reason, transcript.usage))

    def _reshaper(self, call: EngineCall) -> Reshaper:
        options = call.fields.get("stream_options")
        return Reshaper(
            path=call.path,
            request_id=call.request_id,
            created_s=int(self._wall_time_s()),
            model=str(call.fields.get("model", self._spec.name)),
            include_usage=isinstance(options, Mapping) and options.get("include_usage") is True,
        )

    def _prompt(self, call: EngineCall) -> str:
        if call.path == _COMPLETIONS_PATH:
            return _completion_prompt(call.fields.get("prompt"))
        if call.path != CHAT_PATH:
            raise Refusal(
                400, f"The model `{self._spec.name}` does not answer {call.path}", code="invalid_value", param="model"
            )
        try:
            messages = call.fields.get("messages")
            if call.fields.get("continue_final_message") is True:
                return self._template.continued(messages)
            generation_prompt = call.fields.get("add_generation_prompt") is not False
            return self._template.render(messages, add_generation_prompt=generation_prompt)
        except TemplateError as error:
            raise Refusal(400, str(error), code="invalid_value", param="messages") from error


def _completion_prompt(value: object) -> str:
    prompts = [value] if isinstance(value, str) else value
    if isinstance(prompts, list) and len(prompts) == 1 and isinstance(prompts[0], str):
        return prompts[0]
    raise Refusal(
        400,
        "`prompt` must be one string: this model's backend takes text, one prompt a request",
        code="invalid_value",
        param="prompt",
    )


class GenerationStream(PulledReply):
    """A running generation as SSE. Closing it cancels the request in the engine."""

    def __init__(self, reader: "_Reader", transcript: Transcript, reshaper: Reshaper) -> None:
        self.status = 200
        self.content_type = "text/event-stream; charset=utf-8"
        self.headers: Mapping[str, str] = {}
        self._reader = reader
        self._transcript = transcript
        self._reshaper = reshaper

    async def body(self) -> AsyncIterator[bytes]:
        held = self._reshaper.opening()
        try:
            while (outputs := await self._reader.next()) is not None:
                yield held + self._reshaper.text(self._transcript.take(outputs))
                held = b""
            if not self._reader.closed:
                rest = self._reshaper.text(self._transcript.rest())
                yield held + rest + self._reshaper.closing(self._transcript.finish_reason, self._transcript.usage)
        except Refusal as refusal:
            yield b"data: " + refusal.document() + b"\n\n"
        finally:
            self._reader.close()

    async def aclose(self) -> None:
        self._reader.close()


class _Stalled(StreamCut):
    """It was silent for too long."""


class _Reader:
    """The responses of one request, each awaited no longer than the stall timeout; none after `close`."""

    def __init__(self, responses: ResponseStream, health: ModelHealth, stall_timeout_s: float) -> None:
        self.closed = False
        self._responses = responses
        self._health = health
        self._stall_timeout_s = stall_timeout_s
        self._first: Outputs | None = None
        self._ended = False

    async def start(self) -> None:
        """Await the first response; raises EngineFault. The caller has the timeout."""
        self._first = await self._responses.next()
        self._ended = self._first is None

    async def next(self) -> Outputs | None:
        """The next response; None at the end. Raises Refusal, UpstreamError."""
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if self.closed or self._ended:
            return None
        try:
            async with asyncio.timeout(self._stall_timeout_s):
                return await self._responses.next()
        except TimeoutError as error:
            self._health.silent()
            raise _Stalled("stalled") from error
        except EngineFault as fault:
            if self.closed:  # by `aclose`, while this waited
                return None  # type: ignore[unreachable]  # mypy does not see that this waited
            raise self._health.failed(fault, started=True) from fault

    def close(self) -> None:
        """Stop the request in the engine; more than once does nothing more."""
        self.closed = True
        self._first = None
        self._responses.cancel()
