"""Where a choice ends: max_tokens, natural length, stop strings - and what its tokens hash to."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.simulated.choice import Choice, Ending, TokenBlocks, natural_words, plan_choice
from backends.simulated.tokens import EOS_ID, Split, encode, expected_text, split_prompt

PROMPT = "What is a penstock?"
SPLIT = split_prompt(encode(PROMPT))


def test_ignore_eos_runs_to_max_tokens():
    """With ignore_eos the length is exactly max_tokens."""
    choice = plan_choice(SPLIT, 0, Ending(max_tokens=3000, ignore_eos=True))
    assert (choice.limit_tokens, choice.finish_reason) == (3000, "length")
    assert choice.texts(0, 3000) == expected_text(PROMPT, 3000)


def test_natural_end_is_an_empty_last_token():
    """Without ignore_eos an answer ends with an end-of-sequence token that shows nothing."""
    words = natural_words(SPLIT.root)
    choice = plan_choice(SPLIT, 0, Ending(max_tokens=10_000))
    assert (choice.limit_tokens, choice.finish_reason) == (words + 1, "stop")
    assert (choice.text(words), choice.token_id(words)) == ("", EOS_ID)
    assert choice.texts(0, words + 1) == expected_text(PROMPT, words)


def test_natural_end_beyond_max_tokens_is_length():
    """The shorter of the two decides; natural length = max_tokens leaves no room for the end token."""
    words = natural_words(SPLIT.root)
    assert plan_choice(SPLIT, 0, Ending(max_tokens=words)).finish_reason == "length"
    assert plan_choice(SPLIT, 0, Ending(max_tokens=words + 1)).finish_reason == "stop"


@given(st.integers(0, 400))
def test_a_resumed_answer_ends_where_the_whole_one_does(done: int):
    """However much was said already, the natural end stays at the same word."""
    words = natural_words(SPLIT.root)
    choice = plan_choice(Split(SPLIT.root, done), 0, Ending(max_tokens=10_000))
    assert choice.limit_tokens == max(words - done, 0) + 1


def test_min_tokens_puts_off_the_natural_end():
    """min_tokens is honoured before the end token."""
    choice = plan_choice(SPLIT, 0, Ending(max_tokens=10_000, min_tokens=5000))
    assert choice.limit_tokens == 5001


def test_natural_lengths_have_their_median():
    """Half of all answers are longer than 120 words."""
    assert 105 < statistics.median(natural_words(root * 2_654_435_761 % 2**32) for root in range(4000)) < 135


@given(st.integers(0, 300), st.integers(1, 20))
def test_a_stop_string_cuts_the_text_before_it(position: int, length: int):
    """Whatever tokens it spans, the text ends right before the first stop string, and the token that completes it is the last."""
    text = expected_text(PROMPT, 120)
    stop = text[position : position + length]
    choice = plan_choice(SPLIT, 0, Ending(max_tokens=120, ignore_eos=True, stop=("never said", stop)))
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
    assert choice.texts(0, choice.limit_tokens) == text[: text.index(stop)]
    assert stop in expected_text(PROMPT, choice.limit_tokens)
    assert stop not in expected_text(PROMPT, choice.limit_tokens - 1)


@given(st.integers(1, 60), st.integers(1, 12))
def test_text_that_may_become_a_stop_string_is_held_back(tokens: int, length: int):
    """As vLLM's detokenizer: the text lags behind the tokens by one character less than the longest stop, and the last token shows the rest."""
    text = expected_text(PROMPT, tokens)
    choice = plan_choice(SPLIT, 0, Ending(max_tokens=tokens, ignore_eos=True, stop=("\n", "\n" * length)))
    for said in range(1, tokens):
        made = expected_text(PROMPT, said)
        assert choice.texts(0, said) == made[: max(len(made) - (length - 1), 0)]
    assert choice.texts(0, tokens) == text


def test_a_stop_string_that_began_in_the_prompt_is_not_seen():
    """Stop strings are looked for in an engine's own output only, as vLLM does: who continues an answer elsewhere must look across the seam."""
    said = expected_text(PROMPT, 5)
    stop = expected_text(PROMPT, 6)[-7:]
    whole = plan_choice(SPLIT, 0, Ending(max_tokens=20, ignore_eos=True, stop=(stop,)))
    rest = plan_choice(split_prompt(encode(PROMPT + said)), 0, Ending(max_tokens=15, ignore_eos=True, stop=(stop,)))
    assert (whole.limit_tokens, whole.stop_reason) == (6, stop)
    assert (rest.limit_tokens, rest.stop_reason) == (15, None)


def test_a_stop_string_within_min_tokens_is_passed_over():
    """Stops count only once min_tokens were made."""
    first = expected_text(PROMPT, 1)
    assert plan_choice(SPLIT, 0, Ending(max_tokens=5, ignore_eos=True, stop=(first,))).limit_tokens == 1
    assert plan_choice(SPLIT, 0, Ending(max_tokens=5, ignore_eos=True, stop=(first,), min_tokens=1)).limit_tokens == 5


def test_a_stop_string_that_is_not_said_changes_nothing():
    """Unmatched stops leave the plan as it was."""
    ending = Ending(max_tokens=40, ignore_eos=True)
    assert plan_choice(SPLIT, 0, Ending(max_tokens=40, ignore_eos=True, stop=("\n",))) == plan_choice(SPLIT, 0, ending)


@pytest.mark.parametrize("block_size", [1, 4, 16])
def test_generated_blocks_hash_like_a_prompt_of_the_same_tokens(block_size: int):
    """A next turn's prompt finds the blocks that the last turn generated."""
    said = Choice(root=SPLIT.root, start=0, limit_tokens=64, finish_reason="length")
    turn = encode(PROMPT)
    generated = TokenBlocks(turn, said, block_size)
    prompt = TokenBlocks(encode(PROMPT + said.texts(0, 64)), said, block_size)
    blocks = (len(turn) + 64) // block_size
    assert [generated(block) for block in range(blocks)] == [prompt(block) for block in range(blocks)]


def test_block_hashes_are_chained():
    """Equal tokens after another prefix are another block."""
    nothing = Choice(root=0, start=0, limit_tokens=1, finish_reason="length")
    one = TokenBlocks([1, 2, 3, 4], nothing, 2)
    other = TokenBlocks([9, 2, 3, 4], nothing, 2)
    assert one(0) != other(0)
    assert one(1) != other(1)
