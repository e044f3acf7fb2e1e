"""Speculative decoding in counts: how many drafted tokens of a step turn out right. Which words they are changes nothing."""

from dataclasses import dataclass

from backends.simulated.sequence import EngineSequence
from backends.simulated.tokens import mix

# Of reading the model's weights, for each round of drafting; the rounds of a step follow one another. EAGLE's head beside an 8B
# model has 0.25B parameters; a separate draft model of 1B would take 0.12.
DRAFT_RATIO = 0.03

_SALT = 0xD4AF  # keeps these draws apart from the words'


@dataclass(frozen=True, slots=True)
class Speculation:
    """`tokens` are drafted in each decode step of a sequence; each is right with probability `acceptance` if those before it are."""

    tokens: int
    acceptance: float
    seed: int

    def drafts(self, sequence: EngineSequence) -> int:
        """Tokens to draft; none beyond the last, so that a sequence never needs more KV than it was admitted for."""
        return min(self.tokens, sequence.limit_tokens - sequence.generated_tokens - 1)

    def accepted(self, sequence: EngineSequence, drafts: int) -> int:
        """How many of them are right. Drawn by sequence and position alone: no position is drawn twice for one answer."""
        root = mix(self.seed ^ _SALT, sequence.rank[1])
        first = sequence.generated_tokens
        bound = self.acceptance * 2**64
        for index in range(drafts):
            if mix(root, first + index) >= bound:
                return index
        return drafts
