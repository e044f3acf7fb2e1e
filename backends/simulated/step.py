"""One engine step's work while it is planned, and what it comes to."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

from backends.simulated.sequence import EngineSequence


class Emission(NamedTuple):
    """One sequence's result of a step: token number `token` (from 0; -1: the prompt is read, nothing is to be generated)."""

    seq_id: int
    token: int
    finish_reason: str | None


class Work:
    """What a step computes, in the units of the roofline, and who gets something from it."""

    __slots__ = (
        "attention_pairs",
        "batch",
        "budget",
        "decode_tokens",
        "decoded",
        "drafts",
        "emitted",
        "finished",
        "first",
        "grown",
        "kv_tokens",
        "prefill_tokens",
        "ran",
        "ready",
        "sequences",
    )

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.sequences = 0
        self.drafts = 0  # rounds of drafting: the most that any sequence had
        self.prefill_tokens = 0
        self.decode_tokens = 0
        self.kv_tokens = 0
        self.attention_pairs = 0.0
        self.batch: Mapping[EngineSequence, int] = {}  # who decoded together, with their base_tokens
        self.emitted: list[tuple[tuple[int, int], Emission]] = []  # the others' results with their ranks
        self.ran = (
            0  # ... of which so many are of sequences that ran before; the rest is of admitted ones, in their order
        )
        self.first: list[EngineSequence] = []
        self.finished: list[EngineSequence] = []
        self.grown: list[EngineSequence] = []
        self.ready: list[EngineSequence] = []  # they decode from the next step on
        self.decoded = 0


@dataclass(slots=True, eq=False)
class StepResult:
    """A step that starts now: the tokens are there after `duration_s`.

    `emissions` is made when it is first read, which may be at any time; the lists are for readers who need no single token.
    """

    duration_s: float
    first: list[EngineSequence]  # whose first token comes with this step, or whose end without any
    finished: list[EngineSequence]  # whose last token does
    grown: list[EngineSequence]  # decoding sequences that took a new KV block, in no particular order
    decoded: int  # sequences that get a token which is not their first
    _work: Work
    _ticks: int  # the decode clock at the end of the step
    _emissions: list[Emission] | None = field(default=None, init=False)

    @property
    def emissions(self) -> list[Emission]:
        """What each sequence gets: those that ran before by rank, then the admitted ones."""
        if self._emissions is None:
            work = self._work
            ranked = work.emitted[: work.ran]
            for sequence, base in work.batch.items():
                generated = base + self._ticks
                finish = sequence.finish_reason if generated == sequence.limit_tokens else None
                ranked.append((sequence.rank, Emission(sequence.seq_id, generated - 1, finish)))
            ranked.sort(key=itemgetter(0))
            ranked += work.emitted[work.ran :]
            self._emissions = [emission for _, emission in ranked]
        return self._emissions
