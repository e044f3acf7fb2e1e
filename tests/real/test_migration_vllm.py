"""Streams that are cut in the middle and go on at another real vLLM: token for token what one engine says."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pytest

from backends.vllm import HttpBackend
from config.schema import Config
from tests.real.gateway_process import vllm_replica
from tests.real.vllm_server import MODEL, VllmServer
from tests.support.asgi import Call, post
from tests.support.breaking_engine import BreakingEngine
from tests.support.gateways import gateway_over

pytestmark = pytest.mark.real

Pair = tuple[VllmServer, VllmServer]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
TOKENS = 200
ASKED: Mapping[str, Any] = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}
QUESTION: Mapping[str, Any] = {"messages": [{"role": "user", "content": "Tell me of a river and its mills."}], **ASKED}
# The client asks for the ids, too, so that tokens can be compared and not only the text that they make.
STREAMED: Mapping[str, Any] = {"stream": True, "stream_options": {"include_usage": True}, "return_token_ids": True}


def settings(pair: Pair, mode: str = "exact") -> Config:
    replicas = [vllm_replica(name, server) for name, server in zip("ab", pair, strict=True)]
    # Nobody else may ask the engines anything: their calls are counted.
    patience = {"health": {"enabled": False}, "probe": {"timeout_s": 10}, "upstream": {"connect_timeout_s": 10}}
    return Config.model_validate(
        {"replicas": replicas, "migration": {"mode": mode}, "scheduling": {"hedge": {"enabled": False}}, **patience}
    )


def uninterrupted(server: VllmServer, path: str, body: Mapping[str, Any]) -> tuple[str, list[int], int]:
    """Text, token ids and prompt tokens, straight from an engine."""
    answer = httpx.post(server.url + path, json={"model": MODEL, "return_token_ids": True, **body}, timeout=300)
    document = answer.raise_for_status().json()
    choice = document["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    return text, choice["token_ids"], document["usage"]["prompt_tokens"]


def ids_of(call: Call) -> list[int]:
    chunks = [json.loads(event) for event in call.events()[:-1]]
    return [token for chunk in chunks for choice in chunk["choices"] for token in choice.get("token_ids") or ()]


async def broken_at(
    pair: Pair, path: str, body: Mapping[str, Any], places: Sequence[int], mode: str = "exact"
) -> list[Call]:
    """The same request once for each place, cut after so many events, one at a time."""
    config = settings(pair, mode)
    engines = {
        r.name: BreakingEngine(HttpBackend(r, upstream=config.upstream, probe_timeout_s=10)) for r in config.replicas
    }
    shared: list[tuple[int, str]] = []
    for engine in engines.values():
        engine.breaks = shared
    calls = []
    async with gateway_over(engines, config) as running:
        for place in places:
            shared[:] = [(place, "cut")]
            calls.append(await post(running.app, path, {"model": MODEL, **STREAMED, **body}).run())
    # A busy engine tells two tokens in one event, so that a stream may end before the last places, or with its finish reason just told.
    broken = sum(engine.broken for engine in engines.values())
    assert broken >= 0.9 * len(places) - 1
    assert sum(len(engine.calls) for engine in engines.values()) >= len(places) + broken - 1
    if path == CHAT and mode == "exact":  # none before its first token was gone on with
        by_ids = [call for engine in engines.values() for call in engine.calls if call.path == COMPLETIONS]
        assert len(by_ids) >= broken - 1 - sum(place < 2 for place in places)
    return calls


def check(call: Call, text: str, ids: list[int], prompt_tokens: int) -> None:
    *events, done = call.events()
    assert done == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert not any("error" in chunk for chunk in chunks)
    assert call.text() == text
    assert ids_of(call) == ids
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert len({chunk["object"] for chunk in chunks}) == 1
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    assert [(u["prompt_tokens"], u["completion_tokens"]) for u in usages] == [(prompt_tokens, len(ids))]


async def test_a_chat_cut_at_every_tenth_token_is_the_uninterrupted_one(vllm_pair: Pair) -> None:
    """Greedy: token for token, and every character whole, wherever it was cut."""
    expected = uninterrupted(vllm_pair[0], CHAT, QUESTION)
    for call in await broken_at(vllm_pair, CHAT, QUESTION, range(0, TOKENS, 10)):
        check(call, *expected)


@pytest.mark.bars
async def test_a_chat_cut_at_every_token_is_the_uninterrupted_one(vllm_pair: Pair) -> None:
    """All of them: bar 2."""
    expected = uninterrupted(vllm_pair[0], CHAT, QUESTION)
    for call in await broken_at(vllm_pair, CHAT, QUESTION, range(TOKENS)):
        check(call, *expected)


async def test_a_completion_cut_is_the_uninterrupted_one(vllm_pair: Pair) -> None:
    """The same of plain completions, by text prompt."""
    body = {"prompt": "The wheel", **ASKED}
    expected = uninterrupted(vllm_pair[0], COMPLETIONS, body)
    for call in await broken_at(vllm_pair, COMPLETIONS, body, (1, 2, 33, 150)):
        check(call, *expected)


async def test_a_stop_string_is_found_wherever_it_was_cut(vllm_pair: Pair) -> None:
    """One that the answer has in its middle ends it there, on either side of the seam and across it."""
    text, ids, _ = uninterrupted(vllm_pair[0], CHAT, QUESTION)
    stop = text[100:106]
    body = {**QUESTION, "stop": [stop, "never ever said by this model"]}
    whole, _, _ = uninterrupted(vllm_pair[0], CHAT, body)
    assert whole == text[: text.index(stop)]
    direct = httpx.post(
        vllm_pair[0].url + CHAT, json={"model": MODEL, "return_token_ids": True, **body}, timeout=300
    ).json()
    last = len(direct["choices"][0]["token_ids"])
    for call in await broken_at(vllm_pair, CHAT, body, (1, last - 4, last - 3, last - 2, last - 1)):
        assert call.text() == whole
        assert call.events()[-1] == "[DONE]"
        reasons = [
            c["finish_reason"] for e in call.events()[:-1] for c in json.loads(e)["choices"] if c["finish_reason"]
        ]
        assert reasons == ["stop"]
    assert len(ids) == TOKENS


async def test_by_text_an_answer_is_gone_on_with_and_not_begun_again(vllm_pair: Pair) -> None:
    """`continue_final_message`: what was said is not said again, and the whole is as long as was asked for."""
    for call in await broken_at(vllm_pair, CHAT, QUESTION, (50, 120), "text"):
        *events, done = call.events()
        assert done == "[DONE]"
        said = [json.loads(event) for event in events]
        assert [c["finish_reason"] for chunk in said for c in chunk["choices"] if c["finish_reason"]] == ["length"]
        usage = [chunk["usage"] for chunk in said if chunk.get("usage")]
        assert len(usage) == 1
        assert abs(usage[0]["completion_tokens"] - TOKENS) <= 10  # events are not always tokens
