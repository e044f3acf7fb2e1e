"""Answers in vLLM 0.32's wire shapes, field for field: stream chunks, whole documents, usage.

Pure: what to say comes from a job, how far it got from the caller.
"""

import base64
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from backends.simulated.bodies import EmbeddingJob, GenerationJob
from backends.simulated.embedding import embed

DONE = b"data: [DONE]\n\n"

_FINGERPRINT = "penstock-simulated"


class GenerationAnswer:
    """Renders one chat or plain completion."""

    def __init__(self, job: GenerationJob, *, answer_id: str, model: str, created: int) -> None:
        self._job = job
        kind = "chat.completion" if job.chat else "text_completion"
        if job.chat and job.stream:
            kind = "chat.completion.chunk"
        self._head: dict[str, Any] = {"id": answer_id, "object": kind, "created": created, "model": model}
        self._prompt_ids = list(job.prompt_ids) if job.return_token_ids else None

    def opening(self) -> bytes:
        """The chat role chunks, sent with the first token; plain completions have none."""
        if not self._job.chat:
            return b""
        return b"".join(
            self._event(
                {
                    "index": index,
                    "delta": {"role": "assistant", "content": ""},
                    "logprobs": None,
                    "finish_reason": None,
                },
                usage_tokens=0,
                tail={"prompt_token_ids": self._prompt_ids, "prompt_text": None},
            )
            for index in range(len(self._job.choices))
        )

    def token(self, index: int, token: int, finish_reason: str | None) -> bytes:
        """One token's chunk; the last token's carries the finish reason."""
        choice = self._job.choices[index]
        text = choice.text(token)
        stop_reason = choice.stop_reason if finish_reason else None
        ids = [choice.token_id(token)] if self._job.return_token_ids else None
        if self._job.chat:
            chunk: dict[str, Any] = {
                "index": index,
                "delta": {"content": text},
                "logprobs": None,
                "finish_reason": finish_reason,
            }
            if finish_reason:
                chunk["stop_reason"] = stop_reason
        else:
            chunk = {
                "index": index,
                "text": text,
                "logprobs": None,
                "finish_reason": finish_reason,
                "stop_reason": stop_reason,
                "prompt_token_ids": self._prompt_ids if token == 0 else None,
            }
        chunk["token_ids"] = ids
        return self._event(chunk, usage_tokens=token + 1)

    def closing(self, *, completion_tokens: int, cached_tokens: int) -> bytes:
        """The usage chunk, where it was asked for, and the end of the stream."""
        if not self._job.include_usage:
            return DONE
        document = {
            **self._head,
            "choices": [],
            "usage": self._usage(completion_tokens, cached_tokens),
            "system_fingerprint": _FINGERPRINT,
        }
        return _event(document) + DONE

    def document(self, *, finish_reasons: Sequence[str], completion_tokens: int, cached_tokens: int) -> bytes:
        """The whole answer at once."""
        choices = [self._whole(index, reason) for index, reason in enumerate(finish_reasons)]
        document = {
            **self._head,
            "choices": choices,
            "service_tier": None,
            "system_fingerprint": _FINGERPRINT,
            "usage": self._usage(completion_tokens, cached_tokens),
            "kv_transfer_params": None,
        }
        if self._job.chat:
            document |= {"prompt_logprobs": None, "prompt_token_ids": self._prompt_ids}
        return msgspec.json.encode(document)

    def _whole(self, index: int, finish_reason: str) -> dict[str, Any]:
        choice = self._job.choices[index]
        tokens = choice.limit_tokens
        text = choice.texts(0, tokens)
        ids = [choice.token_id(token) for token in range(tokens)] if self._job.return_token_ids else None
        end = {"finish_reason": finish_reason, "stop_reason": choice.stop_reason, "token_ids": ids}
        if not self._job.chat:
            tail = {"prompt_logprobs": None, "prompt_token_ids": self._prompt_ids}
            return {"index": index, "text": text, "logprobs": None, **end, **tail}
        message: dict[str, Any] = {
            "role": "assistant",
            "content": text,
            "refusal": None,
            "tool_calls": [],
            "reasoning": None,
        }
        return {"index": index, "message": message, "logprobs": None, **end}

    def _event(self, choice: Mapping[str, Any], *, usage_tokens: int, tail: Mapping[str, Any] | None = None) -> bytes:
        document = {**self._head, "choices": [choice]}
        if self._job.continuous_usage:
            document["usage"] = self._totals(usage_tokens) | {"completion_tokens_details": None}
        if tail is not None:
            document |= tail
        return _event(document)

    def _usage(self, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
        return self._totals(completion_tokens) | {"prompt_tokens_details": {"cached_tokens": cached_tokens}}

    def _totals(self, completion_tokens: int) -> dict[str, Any]:
        prompt = len(self._job.prompt_ids)
        return {
            "prompt_tokens": prompt,
            "total_tokens": prompt + completion_tokens,
            "completion_tokens": completion_tokens,
        }


def embedding_document(job: EmbeddingJob, *, answer_id: str, model: str, created: int) -> bytes:
    """The answer of /v1/embeddings."""
    tokens = sum(map(len, job.inputs))
    document = {
        "id": answer_id,
        "object": "list",
        "created": created,
        "model": model,
        "data": [
            {"index": index, "object": "embedding", "embedding": _vector(embed(ids), job.base64)}
            for index, ids in enumerate(job.inputs)
        ],
        "usage": {
            "prompt_tokens": tokens,
            "total_tokens": tokens,
            "completion_tokens": 0,
            "prompt_tokens_details": None,
        },
    }
    return msgspec.json.encode(document)


def _vector(values: list[float], as_base64: bool) -> list[float] | str:
    if not as_base64:
        return values
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode("ascii")


def _event(document: Mapping[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(document) + b"\n\n"
