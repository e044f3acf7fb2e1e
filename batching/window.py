"""How long a replica may still work, and what of new work is expected to end within that.

A replica with a deadline takes what will surely have ended by then, one that may soon get a deadline takes nothing long. Surely: the
answer as long as its forecast quantile, first token and steps as much slower than predicted as predictions have been wrong here.
"""

from math import inf
from typing import Final, NamedTuple, Self

from batching.audit import Audit, Tally, at_worst

_UNKNOWN_ERROR: Final = 0.5  # of a replica whose predictions nobody has judged yet: it may take twice as long


class Window(NamedTuple):
    """Seconds. An offer without one takes whatever it has room for."""

    ends_s: float = inf  # on the caller's clock: by then whatever is placed must have ended
    longest_s: float = inf  # that anything placed may run
    ttft_ratio: float = at_worst(1.0, _UNKNOWN_ERROR)  # of what is predicted, that it may take
    tpot_ratio: float = at_worst(1.0, _UNKNOWN_ERROR)

    @property
    def closes(self) -> bool:
        """Whether it has an end: who waits for room there waits in vain."""
        return self.ends_s < inf

    def judged_by(self, audit: Audit) -> Self:
        """The same, as predictions for this replica have turned out lately."""
        finish = audit.finish  # documents show neither first token nor pace
        return self._replace(ttft_ratio=_ratio(audit.ttft, finish), tpot_ratio=_ratio(audit.tpot, finish))

    def surely_ended_s(self, now: float, ttft_s: float, tpot_s: float, tokens: int) -> float:
        """When an answer of so many tokens has ended, at worst."""
        more = tokens - 1 if tokens > 1 else 0
        return now + self.ttft_ratio * ttft_s + self.tpot_ratio * tpot_s * more

    def admits(self, now: float, ttft_s: float, prefill_s: float, tpot_s: float, tokens: int) -> bool:
        """Whether work with these predictions ends in time; `prefill_s`: of `ttft_s`, without its wait for others."""
        more = tokens - 1 if tokens > 1 else 0
        return (
            prefill_s + tpot_s * more <= self.longest_s
            and self.surely_ended_s(now, ttft_s, tpot_s, tokens) <= self.ends_s
        )


def _ratio(tally: Tally, otherwise: Tally) -> float:
    known = tally if tally.known else otherwise
    return at_worst(1.0, known.error if known.known else _UNKNOWN_ERROR)
