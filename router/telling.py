"""How often a process tells the others of its replicas what it has running there: gateways through Redis, workers through the hub.

Without it all of them know it as of a report half a second old, take the same replica for idle, and send it their prompts at once.
"""

from typing import Final

# A prompt takes some tens of milliseconds. At 5 ms eight gateways are no nearer to one (`benchmarks.gateways_in_time`), and all told is told four times as often.
_TELL_S: Final = 0.02
_A_HOLDER_S: Final = 0.001  # of many: nobody has more than a thousand words a second to hear
_COST_RATIO: Final = 20  # no more than a twentieth of the time is spent on looking


def pause_s(holders: int, *, cost_s: float) -> float:
    """Seconds until the next look, where the last one took `cost_s`."""
    return max(_TELL_S, _A_HOLDER_S * holders, _COST_RATIO * cost_s)
