"""What one choice of a request will say and where it ends: decided before its first token, as its words are a pure function.

Knows words, natural lengths and stop strings; the engine is told only how many tokens to make and how they end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    shown: tuple[str, ...] | None = None  # what each token shows, where stop strings hold text back; None: its own word

    def token_id(self, index: int) -> int:
        if self.eos and index == self.limit_tokens - 1:
            return EOS_ID
        return word_id(self.root, self.start + index)

    def text(self, index: int) -> str:
        if self.shown is not None:
            return self.shown[index]
        if self.eos and index == self.limit_tokens - 1:
            return ""
        return word_text(self.root, self.start + index)

    def texts(self, start: int, stop: int) -> str:
        return "".join(self.text(index) for index in range(start, stop))


def plan_choice(split: Split, index: int, ending: Ending) -> Choice:
    """Choice `index` of a request whose prompt was split: the first of max_tokens, natural end and stop strings ends it."""
    root, start = choice_root(split.root, index), split.start
    words = max(natural_words(root) - start, ending.min_tokens, 0)
    eos = words < ending.max_tokens and not ending.ignore_eos
    limit = words + 1 if eos else ending.max_tokens
    choice = Choice(root=root, start=start, limit_tokens=limit, finish_reason="stop" if eos else "length", eos=eos)
    return _with_stops(choice, ending) if ending.stop else choice


def natural_words(root: int) -> int:
    """How many words a sequence has when nothing cuts it short."""
    u = min(max(mix(root, _LENGTH_DRAW) / 2**64, 1e-6), 1 - 1e-6)
    odds: float = u / (1 - u)
    return max(1, int(_MEDIAN_WORDS * math.pow(odds, _SHAPE)))


def _with_stops(choice: Choice, ending: Ending) -> Choice:
    """Ended by a stop string, or not; text is held back either way. Looks at the choice's own words only, as vLLM does."""
    held = 0 if ending.stop_shown else max(map(len, ending.stop)) - 1
    words = [choice.text(index) for index in range(choice.limit_tokens)]
    text = ""
    for index, word in enumerate(words):
        # A stop that this word completes begins here or later.
        fresh = max(len(text) - max(map(len, ending.stop)) + 1, 0)
        text += word
        if index < ending.min_tokens or (choice.eos and index == choice.limit_tokens - 1):
            continue
        found = [(at, stop) for stop in ending.stop if (at := text.find(stop, fresh)) >= 0]
        if found:
            at, stop = min(found)
            choice = replace(choice, limit_tokens=index + 1, finish_reason="stop", eos=False, stop_reason=stop)
            end = at + len(stop) if ending.stop_shown else at
            return replace(choice, shown=_held_back(words[: index + 1], text[:end], held))
    return replace(choice, shown=_held_back(words, text, held)) if held else choice


def _held_back(words: Sequence[str], text: str, held: int) -> tuple[str, ...]:
    """What vLLM's detokenizer shows with each token: all but the last `held` characters, which may yet become a stop string."""
    shown: list[str] = []
    made = said = 0
    for index, word in enumerate(words):
        made += len(word)
        end = len(text) if index == len(words) - 1 else min(max(made - held, said), len(text))
        shown.append(text[said:end])
        said = end
    return tuple(shown)


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
