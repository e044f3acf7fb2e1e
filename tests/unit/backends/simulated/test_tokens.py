"""Tokens and words of the simulated engine: reversible ids, one piece a word, resumption from any point."""

import json
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from backends.simulated.tokens import (
    MAX_TOKEN_ID,
    WORD_IDS,
    Split,
    choice_root,
    decode,
    encode,
    expected_text,
    split_prompt,
    word_id,
    word_text,
)
from backends.simulated.words import WORDS

PROMPTS = st.one_of(
    st.text(max_size=60),
    st.lists(st.sampled_from([*(" " + w for w in WORDS[:40]), " ", "\n", "Hello", "<|assistant|>\n"]), max_size=12).map(
        "".join
    ),
)


def test_vocabulary_is_256_distinct_words_of_one_piece():
    """Each word with its space is exactly one token, none is there twice."""
    assert len(WORDS) == len(set(WORDS)) == 256
    assert all(encode(" " + word) == [word_token] for word, word_token in zip(WORDS, WORD_IDS, strict=True))
    assert any(len(word) != len(word.encode()) for word in WORDS)


@given(st.text())
def test_encode_is_reversible(text: str):
    """Ids decode to the very bytes they came from and are exact as doubles."""
    ids = encode(text)
    assert decode(ids) == text.encode("utf-8", "replace")
    assert all(0 < token <= MAX_TOKEN_ID for token in ids)


def test_english_has_about_four_characters_per_token():
    """The tokenizer's density is that of real vocabularies."""
    text = "The gateway routes each request to the replica that is most likely to hold its prefix in the cache. " * 10
    assert 3 < len(text) / len(encode(text)) < 5.5


def test_ids_that_pack_no_piece_are_rendered():
    """Foreign ids, as a client may send, decode to something readable instead of raising."""
    assert decode([10, 2**41, encode("a")[0]]) == b"<10><2199023255552>a"


@given(PROMPTS, st.sampled_from(WORDS))
def test_appending_a_word_adds_one_token(prompt: str, word: str):
    """Text mode and ids mode agree: a prompt's ids never change when a generated word follows."""
    assert encode(prompt + " " + word) == [*encode(prompt), encode(" " + word)[0]]


@settings(max_examples=60, deadline=None)
@given(PROMPTS, st.integers(1, 40))
def test_resume_continues_the_sequence_for_every_k_in_text_and_ids(prompt: str, length: int):
    """Prompt + first k words goes on with word k, for every k, whether sent as text or as ids."""
    whole = expected_text(prompt, length)
    ids = encode(prompt)
    split = split_prompt(ids)
    text = prompt
    for k in range(length):
        assert expected_text(text, length - k) == whole[len(text) - len(prompt) :]
        assert split_prompt(ids) == Split(split.root, split.start + k)
        text += word_text(split.root, split.start + k)
        ids = [*ids, word_id(split.root, split.start + k)]


def test_resume_survives_thousands_of_words():
    """A long journal still resumes."""
    words = expected_text("Tell me all about weirs.", 9000)
    split = split_prompt(encode("Tell me all about weirs." + words))
    assert split == Split(split_prompt(encode("Tell me all about weirs.")).root, 9000)


def test_prompts_and_choices_differ():
    """Another prompt or another choice says something else; choice 0 is the plain answer."""
    assert expected_text("a", 8) != expected_text("b", 8)
    assert expected_text("a", 8, index=1) != expected_text("a", 8)
    assert choice_root(7, 0) == 7


def test_every_word_is_said_about_equally_often():
    """Words are drawn evenly: no word is missing in 256 * 40 draws, none has thrice its share."""
    counts = dict.fromkeys(WORDS, 0)
    for word in expected_text("even", 256 * 40).split():
        counts[word] += 1
    assert min(counts.values()) > 10
    assert max(counts.values()) < 120


def test_words_are_the_same_in_every_process():
    """Two engines in two processes, with other hash seeds, say the same."""
    code = "import json; from backends.simulated.tokens import expected_text; print(json.dumps(expected_text('x', 20)))"
    output = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "7"}, capture_output=True, check=True, text=True
    ).stdout
    assert json.loads(output) == expected_text("x", 20)
