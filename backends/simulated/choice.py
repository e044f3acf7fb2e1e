"""What one choice of a request will say and where it ends: decided before its first token, as its words are a pure function.

Knows words, natural lengths and stop strings; the engine is told only how many tokens to make and how they end.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from backends.simulated.tokens import EOS_ID, Split, choice_root, mix, word_id, word_text

# Natural output lengths: log-logistic with this median and shape, close to what chat traces show (half within 73-197 words).
_MEDIAN_WORDS = 120
_SHAPE = 0.45
_LENGTH_DRAW = 2**40  # a draw number no word has


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What the request's body says about where a choice ends."""

    max_tokens: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stop_shown: bool = False  # the stop string is part of the answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """`limit_tokens` tokens: words from number `start` of `root` on, the last of them the end-of-sequence token if `eos`."""

    root: int
    start: int
    limit_tokens: int
    finish_reason: str
    eos: bool = False
    stop_reason: str | None = None
    cut_token: int | None = None  # the token in which a stop string begins
    cut_chars: int = 0  # what is shown of it; nothing is shown of those after it

    def token_id(self, index: int) -> int:
        if self.eos and index == self.limit_tokens - 1:
            return EOS_ID
        return word_id(self.root, self.start + index)

    def text(self, index: int) -> str:
        if self.eos and index == self.limit_tokens - 1:
            return ""
        word = word_text(self.root, self.start + index)
        if self.cut_token is None or index < self.cut_token:
            return word
        return word[: self.cut_chars] if index == self.cut_token else ""

    def texts(self, start: int, stop: int) -> str:
        return "".join(self.text(index) for index in range(start, stop))


def plan_choice(split: Split, index: int, ending: Ending) -> Choice:
    """Choice `index` of a request whose prompt was split: the first of max_tokens, natural end and stop strings ends it."""
    root, start = choice_root(split.root, index), split.start
    words = max(natural_words(root) - start, ending.min_tokens, 0)
    eos = words < ending.max_tokens and not ending.ignore_eos
    limit = words + 1 if eos else ending.max_tokens
    stopped = _find_stop(root, start, words if eos else limit, ending) if ending.stop else None
    if stopped is not None:
        return stopped
    return Choice(root=root, start=start, limit_tokens=limit, finish_reason="stop" if eos else "length", eos=eos)


def natural_words(root: int) -> int:
    """How many words a sequence has when nothing cuts it short."""
    u = min(max(mix(root, _LENGTH_DRAW) / 2**64, 1e-6), 1 - 1e-6)
    odds: float = u / (1 - u)
    return max(1, int(_MEDIAN_WORDS * math.pow(odds, _SHAPE)))


def _find_stop(root: int, start: int, words: int, ending: Ending) -> Choice | None:
    overlap = max(map(len, ending.stop)) - 1
    ends: list[int] = []  # characters up to and including each word
    window = ""
    length = 0
    for index in range(words):
        word = word_text(root, start + index)
        length += len(word)
        ends.append(length)
        window = (window[-overlap:] if overlap else "") + word
        if index < ending.min_tokens:
            continue
        found = [(at, stop) for stop in ending.stop if (at := window.find(stop)) >= 0]
        if found:
            at, stop = min(found)
            position = length - len(window) + at + ending.stop_shown * len(stop)
            cut = min(bisect_right(ends, position), index)
            return Choice(
                root=root,
                start=start,
                limit_tokens=index + 1,
                finish_reason="stop",
                stop_reason=stop,
                cut_token=cut,
                cut_chars=position - (ends[cut - 1] if cut else 0),
            )
    return None


class TokenBlocks:
    """Chained hashes of a sequence's full blocks, prompt first, then what it generates; each computed once, when asked for."""

    def __init__(self, prompt_ids: Sequence[int], choice: Choice, block_size: int) -> None:
        self._prompt_ids = prompt_ids
        self._choice = choice
        self._block_size = block_size
        self._hashes: list[int] = []

    def __call__(self, block: int) -> int:
        while len(self._hashes) <= block:
            first = len(self._hashes) * self._block_size
            parent = self._hashes[-1] if self._hashes else 0
            # A tuple of ints hashes alike in every process: PYTHONHASHSEED salts only str and bytes.
            self._hashes.append(hash((parent, *self._ids(first, first + self._block_size))))
        return self._hashes[block]

    def _ids(self, start: int, stop: int) -> list[int]:
        prompt = len(self._prompt_ids)
        ids = list(self._prompt_ids[start:stop])
        ids += [self._choice.token_id(index - prompt) for index in range(max(start, prompt), stop)]
        return ids
