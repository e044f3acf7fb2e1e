"""Conversations for a fleet: each begins with one of a few system prompts, and every turn repeats all that was said before it.

Drawn ahead of any run, so that all runs have the same ones; the answers between are the engines' own.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

WORDS: Final = ("alder", "basalt", "cedar", "dune", "ember", "fjord", "glacier", "heron", "inlet", "juniper", "kelp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What the client says, and how long after the last answer's end."""

    text: str
    after_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Begins at `at_s`."""

    at_s: float
    system: str
    turns: tuple[Turn, ...]


def conversations(
    rate: float, seconds: float, *, systems: int, system_words: int, pause_s: float, seed: int = 1
) -> Iterator[Conversation]:
    """Poisson arrivals of `rate` a second; one to eight turns of 20 to 120 words, each after a pause of some `pause_s`."""
    random_ = random.Random(seed)
    prompts = [f"You are assistant {number}. {_text(random_, system_words)}" for number in range(systems)]
    at_s = random_.expovariate(rate)
    while at_s < seconds:
        turns = tuple(
            Turn(
                text=_text(random_, random_.randint(20, 120)), after_s=random_.expovariate(1 / pause_s) if turn else 0.0
            )
            for turn in range(random_.randint(1, 8))
        )
        yield Conversation(at_s=at_s, system=random_.choice(prompts), turns=turns)
        at_s += random_.expovariate(rate)


def _text(random_: random.Random, words: int) -> str:
    return " ".join(f"{random_.choice(WORDS)}{random_.randint(0, 999)}" for _ in range(words))
