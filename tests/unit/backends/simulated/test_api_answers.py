"""What the simulated engine answers: vLLM's wire shapes, streamed and whole."""

import base64
import json
import struct

import pytest

from backends.simulated.bodies import chat_text
from backends.simulated.tokens import encode, expected_text
from tests.support.simulated_calls import CHAT, COMPLETIONS, EMBEDDINGS, HELLO, answer, ask, events


def test_chat_stream_is_vllms_event_by_event():
    """Role chunk, one chunk a token, finish in the last one, usage, [DONE]: the fields of vLLM 0.32 in their order."""
    fields = {
        "model": "sim-8b", "messages": HELLO, "stream": True, "max_tokens": 2, "ignore_eos": True,
        "stream_options": {"include_usage": True}, "return_token_ids": True,
    }  # fmt: skip
    status, body = ask(CHAT, fields)
    prompt = chat_text(HELLO)
    ids = encode(prompt)
    words = expected_text(prompt, 2).split()
    head = '"id":"chatcmpl-r1","object":"chat.completion.chunk","created":1795474295,"model":"sim-8b"'
    delta = '"delta":{"role":"assistant","content":""}'
    chunks = [
        (
            f'{{{head},"choices":[{{"index":0,{delta},"logprobs":null,"finish_reason":null}}],'
            f'"prompt_token_ids":{json.dumps(ids, separators=(",", ":"))},"prompt_text":null}}'
        ),
        (
            f'{{{head},"choices":[{{"index":0,"delta":{{"content":" {words[0]}"}},"logprobs":null,"finish_reason":null,'
            f'"token_ids":[{encode(" " + words[0])[0]}]}}]}}'
        ),
        (
            f'{{{head},"choices":[{{"index":0,"delta":{{"content":" {words[1]}"}},"logprobs":null,"finish_reason":"length",'
            f'"stop_reason":null,"token_ids":[{encode(" " + words[1])[0]}]}}]}}'
        ),
        (
            f'{{{head},"choices":[],"usage":{{"prompt_tokens":{len(ids)},"total_tokens":{len(ids) + 2},"completion_tokens":2,'
            f'"prompt_tokens_details":{{"cached_tokens":0}}}},"system_fingerprint":"penstock-simulated"}}'
        ),
        "[DONE]",
    ]
    assert status == 200
    assert body.decode() == "".join(f"data: {chunk}\n\n" for chunk in chunks)


def test_usage_comes_only_when_asked_for():
    """No stream_options: no usage; continuous_usage_stats: in every chunk, counting up."""
    base = {"messages": HELLO, "stream": True, "max_tokens": 3, "ignore_eos": True}
    assert all("usage" not in event for event in events(ask(CHAT, base)[1]))
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    counts = [event["usage"]["completion_tokens"] for event in events(ask(CHAT, base | options)[1])]
    assert counts == [0, 1, 2, 3, 3]


def test_completion_stream_and_document_agree():
    """Streamed or whole, the text is the same and is the expected one."""
    fields = {"prompt": "A weir is", "max_tokens": 20, "ignore_eos": True, "return_token_ids": True}
    whole = answer(COMPLETIONS, fields)
    choice = whole["choices"][0]
    chunks = events(ask(COMPLETIONS, fields | {"stream": True})[1])
    assert choice["text"] == "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected_text("A weir is", 20)
    assert choice["token_ids"] == [chunk["choices"][0]["token_ids"][0] for chunk in chunks]
    assert choice["prompt_token_ids"] == chunks[0]["choices"][0]["prompt_token_ids"] == encode("A weir is")
    assert (whole["object"], whole["id"]) == ("text_completion", "cmpl-r1")
    assert chunks[-1]["choices"][0]["finish_reason"] == choice["finish_reason"] == "length"


def test_completions_default_to_sixteen_tokens():
    """As OpenAI's and vLLM's /v1/completions do."""
    assert answer(COMPLETIONS, {"prompt": "x", "ignore_eos": True})["usage"]["completion_tokens"] == 16


def test_several_choices_share_a_prompt():
    """n=3 gives three different texts, the first that of n=1; the prompt is counted once."""
    fields = {"messages": HELLO, "n": 3, "max_tokens": 5, "ignore_eos": True}
    whole = answer(CHAT, fields)
    texts = [choice["message"]["content"] for choice in whole["choices"]]
    assert texts == [expected_text(chat_text(HELLO), 5, index=index) for index in range(3)]
    assert len(set(texts)) == 3
    assert whole["usage"]["completion_tokens"] == 15
    streamed = events(ask(CHAT, fields | {"stream": True})[1])
    assert [
        "".join(e["choices"][0]["delta"]["content"] for e in streamed if e["choices"][0]["index"] == i)
        for i in range(3)
    ] == texts


def test_stop_strings_end_the_text_before_them():
    """finish_reason stop, the string that matched in stop_reason, its text not shown, streamed or not."""
    text = expected_text("A weir is", 10)
    stop = text[12:20]
    fields = {"prompt": "A weir is", "max_tokens": 50, "ignore_eos": True, "stop": [stop, "zzz"]}
    choice = answer(COMPLETIONS, fields)["choices"][0]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == (text[:12], "stop", stop)
    chunks = events(ask(COMPLETIONS, fields | {"stream": True})[1])
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text[:12]


def test_content_parts_are_joined():
    """A list of text parts is the same message as their text."""
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}]
    assert chat_text(parts) == chat_text(HELLO)


def test_embeddings_are_unit_vectors_in_both_encodings():
    """One vector an input, 64 floats of length 1, the same in base64, alike for alike texts."""
    fields = {"input": ["the river gate", "the river gates", "zinc"], "model": "sim-embed"}
    rows = [row["embedding"] for row in answer(EMBEDDINGS, fields)["data"]]
    encoded = [row["embedding"] for row in answer(EMBEDDINGS, fields | {"encoding_format": "base64"})["data"]]
    assert [list(struct.unpack("<64f", base64.b64decode(text))) for text in encoded] == rows
    assert all(sum(value * value for value in row) == pytest.approx(1) for row in rows)

    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    assert dot(rows[0], rows[1]) > 0.5 > dot(rows[0], rows[2])
    assert answer(EMBEDDINGS, {"input": encode("zinc"), "model": "sim-embed"})["data"][0]["embedding"] == rows[2]
