"""Runs Hypothesis properties round after round, each with a seed that is printed: so many turns, the same on every machine, or for a time."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.strategies import SearchStrategy

# Generating and shrinking only: what failed once becomes a test of its own, not an entry in a local database.
_ROUND = settings(
    max_examples=200, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink)
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Property:
    """What holds of everything that these strategies, one a parameter, can make."""

    name: str
    check: Callable[..., None]
    strategies: Mapping[str, SearchStrategy[Any]]

    def round(self, *, examples: int, seed: int) -> None:
        """Raises what the check raises, for the smallest example that was found."""
        hypothesis.seed(seed)(
            settings(_ROUND, max_examples=examples)(hypothesis.given(**self.strategies)(self.check))
        )()


def holds_for(**strategies: SearchStrategy[Any]) -> Callable[[Callable[..., None]], Property]:
    """Makes a property of a check."""
    return lambda check: Property(check.__name__, check, strategies)


def fuzz(properties: Sequence[Property], *, turns: int = 1, seconds: float = 0, seed: int, examples: int = 200) -> int:
    """Each property in turn, `examples` a round, at least `turns` rounds each and for at least `seconds`; the number of rounds.

    What fails raises with the seed of its round: `Property.round` plays it again.
    """
    end_s = time.monotonic() + seconds
    number = 0
    while number < turns * len(properties) or time.monotonic() < end_s:
        subject = properties[number % len(properties)]
        try:
            subject.round(examples=examples, seed=seed + number)
        except BaseException as error:
            error.add_note(f"fuzzing: {subject.name}, seed {seed + number}, {examples} examples")
            raise
        number += 1
    print(f"fuzzing: {number} rounds of {examples} examples, seeds {seed} to {seed + number - 1}")
    return number
