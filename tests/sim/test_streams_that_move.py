"""Streams whose engine breaks at every possible event go on at another one, and nobody can tell from the answer."""

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from backends.simulated.bodies import chat_text
from backends.simulated.tokens import encode, expected_text
from config.schema import Config
from tests.support.asgi import Call, chat, post
from tests.support.breaking_engine import ENDINGS, BreakingEngine, breaking_simulated
from tests.support.conditions import at_rest
from tests.support.gateways import Running, gateway_over
from tests.support.simulated_fleet import CHAT, fleet_config
from tests.support.virtual_time import run_virtual

COMPLETIONS = "/v1/completions"
TOKENS = 12
CAPACITY = {"max_num_seqs": 16, "kv_blocks": 2000, "max_num_batched_tokens": 2048, "max_model_len": 4096}


def config(mode: str = "exact", **migration: Any) -> Config:
    return fleet_config("a", "b", capacity=CAPACITY, migration={"mode": mode, **migration})


def said_by(
    body: dict[str, Any],
    *breaks: tuple[int, str],
    path: str = CHAT,
    settings: Config | None = None,
) -> tuple[Call, list[BreakingEngine], Running]:
    """One stream; the breaks meet whichever engines it is sent to, in turn."""
    settings = settings or config()
    engines = {name: breaking_simulated(settings, name) for name in ("a", "b")}
    shared = list(breaks)
    for engine in engines.values():
        engine.breaks = shared

    async def main() -> tuple[Call, Running]:
        async with gateway_over(engines, settings) as running:
            call = await post(running.app, path, body).run()
            await asyncio.sleep(1)
            assert at_rest(running)
            assert [engine.running for engine in engines.values()] == [0, 0]
            return call, running

    call, running = run_virtual(main())
    return call, list(engines.values()), running


def counted(running: Running, name: str, **labels: str) -> float:
    """The sum of a counter's samples; after the gateway's end, too."""
    samples = [sample for family in running.gateway.registry.collect() for sample in family.samples]
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def chat_body(**fields: Any) -> dict[str, Any]:
    return chat(
        "Tell me", stream=True, max_tokens=TOKENS, ignore_eos=True, stream_options={"include_usage": True}, **fields
    )


def text_of(body: dict[str, Any], tokens: int = TOKENS) -> str:
    return expected_text(body["prompt"] if "prompt" in body else chat_text(body["messages"]), tokens)


def check_one_stream(
    call: Call, text: str, *, tokens: int = TOKENS, prompt_tokens: int, reason: str = "length"
) -> None:
    """One answer, as from one engine."""
    assert call.status == 200
    *events, usage, done = call.events()
    assert done == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert len({(c["id"], c["object"], c["created"], c["model"]) for c in [*chunks, json.loads(usage)]}) == 1
    assert all("error" not in c and len(c["choices"]) == 1 for c in chunks)
    choices = [c["choices"][0] for c in chunks]
    assert call.text() == text
    assert [c["finish_reason"] for c in choices if c["finish_reason"]] == [reason]
    assert choices[-1]["finish_reason"] == reason
    if "delta" in choices[0]:
        assert ["role" in c["delta"] for c in choices] == [True] + [False] * (len(choices) - 1)
    assert b'"token_ids":[' not in call.data
    counted = json.loads(usage)["usage"]
    assert (counted["prompt_tokens"], counted["completion_tokens"]) == (prompt_tokens, tokens)
    assert counted["total_tokens"] == prompt_tokens + tokens


@pytest.mark.parametrize("mode", ["exact", "text"])
@pytest.mark.parametrize("after", range(TOKENS + 1))
def test_a_chat_broken_at_any_event_goes_on(mode: str, after: int) -> None:
    """Cut after every event from the first on: the text is the uninterrupted one, usage and finish reason come once."""
    body = chat_body()
    call, engines, running = said_by(body, (after, "cut"), settings=config(mode))
    check_one_stream(call, text_of(body), prompt_tokens=len(encode(chat_text(body["messages"]))))
    assert sum(len(engine.calls) for engine in engines) == 2
    resumed = {"action": "resumed", "mode": mode, "model": "m"}
    # With nothing said yet it is simply asked again.
    assert counted(running, "penstock_stream_interruptions_total", **resumed) == (after > 1)
    assert counted(running, "penstock_stream_interruptions_total", action="errored") == 0


@pytest.mark.parametrize("mode", ["exact", "text"])
@pytest.mark.parametrize("after", range(TOKENS))
def test_a_completion_broken_at_any_event_goes_on(mode: str, after: int) -> None:
    """The same of /v1/completions, whose prompt is one text."""
    body = {"model": "m", "prompt": "Once upon", "stream": True, "max_tokens": TOKENS, "ignore_eos": True}
    body["stream_options"] = {"include_usage": True}
    call, _, _ = said_by(body, (after, "cut"), path=COMPLETIONS, settings=config(mode))
    check_one_stream(call, text_of(body), prompt_tokens=len(encode("Once upon")))


@pytest.mark.parametrize("mode", ["exact", "text"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_every_ending_is_survived(ending: str, mode: str) -> None:
    """However an engine breaks in mid-stream, the answer goes on."""
    body = chat_body()
    call, _, _ = said_by(body, (5, ending), settings=config(mode))
    check_one_stream(call, text_of(body), prompt_tokens=len(encode(chat_text(body["messages"]))))


@pytest.mark.parametrize(
    "breaks", [[(3, "cut"), (2, "cut"), (4, "error")], [(1, "cut"), (4, "cut"), (0, "cut"), (3, "cut")]]
)
def test_a_stream_may_move_again_and_again(breaks: Sequence[tuple[int, str]]) -> None:
    """Each engine brings it a little further."""
    for mode in ("exact", "text"):
        body = chat_body()
        call, engines, _ = said_by(body, *breaks, settings=config(mode))
        check_one_stream(call, text_of(body), prompt_tokens=len(encode(chat_text(body["messages"]))))
        assert sum(len(engine.calls) for engine in engines) == len(breaks) + 1


def test_going_on_by_ids_asks_for_exactly_the_rest() -> None:
    """Plain completions with the prompt's ids and those said; only what is left of max_tokens; nothing of a chat."""
    body = chat_body(temperature=0.5, seed=3, chat_template_kwargs={"a": 1}, max_completion_tokens=TOKENS)
    _, engines, _ = said_by(body, (5, "cut"))
    call = next(c for engine in engines for c in engine.calls if c.path == COMPLETIONS)
    sent = json.loads(call.body)
    ids = encode(chat_text(body["messages"]))
    assert sent["prompt"][: len(ids)] == ids
    assert len(sent["prompt"]) == len(ids) + 4  # the role came first
    assert sent["max_tokens"] == TOKENS - 4
    assert (sent["temperature"], sent["seed"], sent["return_token_ids"]) == (0.5, 3, True)
    assert sent.keys().isdisjoint({"messages", "max_completion_tokens", "chat_template_kwargs"})


def test_what_nobody_can_go_on_with_ends_with_an_error() -> None:
    """Several choices, log probabilities, structured answers: said aloud, never a second answer glued to the first."""
    for fields in ({"n": 2}, {"response_format": {"type": "json_object"}}, {"structured_outputs": {"regex": "a"}}):
        call, engines, running = said_by(chat_body(**fields), (6, "cut"))
        assert json.loads(call.events()[-1])["error"]["type"] == "server_error"
        assert "[DONE]" not in call.events()
        assert sum(len(engine.calls) for engine in engines) == 1
        assert counted(running, "penstock_stream_interruptions_total", action="errored", mode="none") == 1


def test_what_nobody_can_go_on_with_is_asked_again_while_nothing_was_said() -> None:
    """A role is no answer yet."""
    call, engines, _ = said_by(chat_body(n=2), (1, "cut"))
    assert call.events()[-1] == "[DONE]"
    assert sum(len(engine.calls) for engine in engines) == 2
    assert call.text() == text_of(chat_body())


def test_switched_off_it_is_an_error() -> None:
    """Switched off it is an error."""
    call, _, _ = said_by(chat_body(), (4, "cut"), settings=config("off"))
    assert "error" in json.loads(call.events()[-1])


def test_an_overfull_journal_gives_up_ids_first() -> None:
    """Then the answer goes on by text; beyond the bound of text, too, it ends with an error."""
    body = chat_body()
    ids = len(str(encode(chat_text(body["messages"]))))
    call, _, running = said_by(body, (6, "cut"), settings=config_of_room(ids))
    assert call.text() == text_of(body)
    assert counted(running, "penstock_stream_interruptions_total", action="resumed", mode="text") == 1
    call, _, _ = said_by(body, (6, "cut"), settings=config_of_room(4))
    assert "error" in json.loads(call.events()[-1])


def config_of_room(room: int) -> Config:
    return fleet_config("a", "b", capacity=CAPACITY, migration={"journal_bytes": room})


def test_a_stop_string_across_the_seam_still_stops() -> None:
    """One that begins in a word of the first engine and ends in one of the second, for every place of the seam."""
    whole = text_of(chat_body())
    words = whole.split(" ")[1:]
    stop = f"{words[4][-2:]} {words[5][:2]}"
    at = whole.index(stop)
    body = chat_body(stop=[stop, "never said"])
    for after in range(1, 8):
        call, _, _ = said_by(body, (after, "cut"))
        assert call.text() == whole[:at], after
        reasons = [json.loads(e)["choices"][0]["finish_reason"] for e in call.events()[:-1] if json.loads(e)["choices"]]
        assert [reason for reason in reasons if reason] == ["stop"]
        assert call.events()[-1] == "[DONE]"


def test_the_moves_of_one_answer_are_bounded() -> None:
    """The moves of one answer are bounded."""
    settings = fleet_config("a", "b", capacity=CAPACITY, migration={"max_moves": 2})
    call, engines, _ = said_by(chat_body(), *[(2, "cut")] * 9, settings=settings)
    assert "error" in json.loads(call.events()[-1])
    assert sum(len(engine.calls) for engine in engines) == 3


def document_of(
    body: dict[str, Any], *breaks: tuple[int, str], path: str = CHAT
) -> tuple[dict[str, Any], list[BreakingEngine], Running]:
    """Not streamed to the client."""
    call, engines, running = said_by(body, *breaks, path=path, settings=config(documents_from_tokens=TOKENS))
    assert call.status == 200
    assert call.header("content-type") == "application/json"
    assert call.header("content-length") == str(len(call.data))
    document: dict[str, Any] = call.json()
    return document, engines, running


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("after", [0, 1, 2, 5, TOKENS - 1])
def test_an_answer_that_is_not_streamed_moves_too(path: str, after: int) -> None:
    """It is the document that one engine would have given, and only the rest of it was generated again."""
    asked = {"max_tokens": TOKENS, "ignore_eos": True}
    body = chat("Tell me", **asked) if path == CHAT else {"model": "m", "prompt": "Tell me", **asked}
    expected, _, _ = document_of(body, path=path)
    document, engines, running = document_of(body, (after, "cut"), path=path)
    assert document | {"id": "", "created": 0} == expected | {"id": "", "created": 0}
    choice = document["choices"][0]
    assert (choice["message"]["content"] if path == CHAT else choice["text"]) == text_of(body)
    assert choice["finish_reason"] == "length"
    assert document["object"] == ("chat.completion" if path == CHAT else "text_completion")
    assert document["usage"]["completion_tokens"] == TOKENS
    assert sum(len(engine.calls) for engine in engines) == 2
    assert counted(running, "penstock_request_duration_seconds_count", stream="false") == 1
    assert counted(running, "penstock_time_to_first_token_seconds_count") == 0


def test_a_short_document_is_asked_for_as_one() -> None:
    """Nothing is gained by streaming it."""
    call, engines, _ = said_by(chat("Tell me", max_tokens=TOKENS - 1), settings=config(documents_from_tokens=TOKENS))
    assert call.status == 200
    assert [c.stream for engine in engines for c in engine.calls] == [False]


def test_a_document_that_cannot_be_had_is_refused_with_a_status() -> None:
    """Though its engine had begun to tell it."""
    settings = config(documents_from_tokens=TOKENS, max_moves=1)
    call, _, _ = said_by(chat("Tell me", max_tokens=TOKENS, ignore_eos=True), *[(3, "cut")] * 4, settings=settings)
    assert call.status == 502
    assert call.json()["error"]["type"] == "server_error"


@pytest.mark.parametrize("after", [0, 1, 2, 7])
def test_a_client_that_asks_for_token_ids_gets_them(after: int) -> None:
    """The answer's from all engines, the prompt's once and its own."""
    body = chat_body(return_token_ids=True)
    call, engines, _ = said_by(body, (after, "cut"))
    prompt = encode(chat_text(body["messages"]))
    chunks = [json.loads(event) for event in call.events()[:-1]]
    assert [chunk["prompt_token_ids"] for chunk in chunks if chunk.get("prompt_token_ids")][-1:] == [prompt]
    ids = [token for chunk in chunks for choice in chunk["choices"] for token in choice.get("token_ids") or ()]
    assert ids == encode(text_of(body))
    assert after < 2 or any(call.path == COMPLETIONS for engine in engines for call in engine.calls)
