"""Prompts are measured in characters or exact tokens, and hashed in chained chunks."""

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from router.openai.body import parse_object
from router.openai.prompt import CHUNK_CHARS, CHUNK_TOKENS, MAX_CHUNKS, read_messages, read_prompt, text_chunks


def messages(*contents: Any, **fields: Any) -> Any:
    said = [{"role": "user", "content": content} for content in contents]
    return read_messages(parse_object(json.dumps({"messages": said, **fields}).encode(), max_depth=64), "m")


@given(st.text(max_size=1200), st.text(max_size=600), st.text(max_size=600))
def test_equal_hashes_mean_equal_text(shared: str, one: str, other: str) -> None:
    """Two prompts share exactly the hashes of the chunks that they share from the start."""
    first, second = shared + one, shared + other
    a, b = text_chunks("m", [first]), text_chunks("m", [second])
    same = next(
        (i for i, (x, y) in enumerate(zip(first, second, strict=False)) if x != y), min(len(first), len(second))
    )
    whole = same // CHUNK_CHARS
    assert len(a) == len(first) // CHUNK_CHARS
    assert a[:whole] == b[:whole]
    assert not set(a[whole:]) & set(b[whole:])


def test_hashes_do_not_depend_on_the_pieces() -> None:
    """Only the text counts, not how it was cut into messages' parts."""
    assert text_chunks("m", ["ab" * 300]) == text_chunks("m", ["ab" * 100, "ab" * 150, "ab" * 50])


def test_models_do_not_share_hashes() -> None:
    """A replica that serves two models keeps no KV block for both."""
    assert text_chunks("m", ["x" * 256]) != text_chunks("other", ["x" * 256])


def test_hashes_are_bounded_and_fit_64_bits() -> None:
    """A prompt of megabytes has 512 hashes."""
    hashes = text_chunks("m", ["x" * 1_000_000])
    assert len(hashes) == MAX_CHUNKS
    assert max(hashes) < 2**64


def test_a_longer_conversation_keeps_its_hashes() -> None:
    """The next turn starts with the last one: that is what prefix locality lives on."""
    first = messages("a" * 1000)
    second = messages("a" * 1000, "b" * 1000)
    assert second.chunks[: len(first.chunks)] == first.chunks
    assert len(second.chunks) > len(first.chunks)


def test_characters_count_text_tools_and_calls() -> None:
    """Everything that becomes prompt tokens counts; media do not, nobody knows their size here."""
    tools = [{"type": "function", "function": {"name": "f"}}]
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    assert messages("four").chars == 4
    assert messages([{"type": "text", "text": "four"}, image, "five5"]).chars == 9
    assert messages(None).chars == 0
    assert messages("four", tools=tools).chars == 4 + len(json.dumps(tools))
    call = {
        "role": "assistant",
        "tool_calls": [{"function": {"name": "abc", "arguments": "{}"}}, 3, {"function": None}],
    }
    read = read_messages(parse_object(json.dumps({"messages": [call]}).encode(), max_depth=9), "m")
    assert read.chars == 5


def test_different_images_are_different_prefixes() -> None:
    """A mark stands for each image, so that two pictures with the same question are told apart."""

    def chunks(url: str) -> Any:
        return messages([{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "x" * 600}]).chunks

    assert chunks("https://a.example/1.png") == chunks("https://a.example/1.png")
    assert not set(chunks("https://a.example/1.png")) & set(chunks("https://a.example/2.png"))


def test_token_ids_are_exact() -> None:
    """Who sends token ids tells the prompt's size, and its chunks' size, exactly."""
    ids = list(range(200))
    prompt = read_prompt(ids, "prompt", "m")
    assert (prompt.token_count, prompt.chars, prompt.chunk_tokens) == (200, 0, CHUNK_TOKENS)
    assert len(prompt.chunks) == 3
    changed = read_prompt([*ids[:150], 7, *ids[151:]], "prompt", "m")
    assert changed.chunks[:2] == prompt.chunks[:2]
    assert changed.chunks[2] != prompt.chunks[2]
    assert read_prompt([[1, 2], [3]], "prompt", "m").token_count == 3
