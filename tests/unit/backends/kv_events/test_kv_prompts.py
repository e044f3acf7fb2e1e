"""Which prompts an engine is asked to tokenize, and what its answers are taken for."""

from typing import Any

import httpx
import pytest

from backends.kv_events.prompts import TokensUnavailableError, ask, own_tokens, question

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]


def test_a_chat() -> None:
    """Messages, tools and what a template may be told go along; sampling does not."""
    asked = {"model": "m", "messages": TALK, "tools": [{"type": "function"}], "chat_template_kwargs": {"think": False}}
    assert question(CHAT, {**asked, "temperature": 0, "stream": True, "add_generation_prompt": None}) == asked


def test_a_completion() -> None:
    """One text is asked about; several are several sequences, of which only the first has chunks."""
    assert question(COMPLETION, {"model": "m", "prompt": "Once", "n": 2}) == {"model": "m", "prompt": "Once"}
    assert question(COMPLETION, {"model": "m", "prompt": ["Once", "Twice"]}) is None
    assert question("/v1/embeddings", {"model": "m", "input": "Once"}) is None


@pytest.mark.parametrize(
    "more",
    [
        {"cache_salt": "s"},
        {"chat_template": "{{ x }}"},
        {"truncate_prompt_tokens": 9},
        {"reasoning_effort": "low"},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://h/"}}]}]},
    ],
)
def test_what_would_be_read_otherwise_is_not_asked_about(more: dict[str, Any]) -> None:
    """Salts, templates, truncation and images: the tokens would be others, or the blocks not to be shared."""
    assert question(CHAT, {"model": "m", "messages": TALK, **more}) is None


def test_ids_of_the_client_s_own() -> None:
    """A prompt of token ids needs no question."""
    assert own_tokens(COMPLETION, {"prompt": [5, 6]}) == [5, 6]
    assert own_tokens(COMPLETION, {"prompt": [5, 6], "cache_salt": "s"}) is None
    assert own_tokens(COMPLETION, {"prompt": [[5], [6]]}) is own_tokens(COMPLETION, {"prompt": "text"}) is None


async def asked(answer: httpx.Response | Exception, key: str | None = None) -> tuple[list[int], httpx.Request]:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with httpx.AsyncClient(transport=httpx.MockTransport(handle)) as http:
        return await ask(http, "http://h:1/base", key, {"prompt": "Once"}), seen[0]


async def test_an_answer() -> None:
    """The tokens come back; the replica's key goes along."""
    tokens, request = await asked(httpx.Response(200, json={"count": 2, "tokens": [5, 6], "more": None}), key="k")
    assert tokens == [5, 6]
    assert (str(request.url), request.headers["authorization"]) == ("http://h:1/base/tokenize", "Bearer k")


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(404),
        httpx.Response(200, text="<html>"),
        httpx.Response(200, json={"tokens": "5 6"}),
        httpx.Response(200, content=b" " * (8 * 2**20 + 1)),
        httpx.ReadTimeout("slow"),
    ],
)
async def test_no_answer(answer: httpx.Response | Exception) -> None:
    """Whatever is no list of tokens in time is one error."""
    with pytest.raises(TokensUnavailableError):
        await asked(answer)
