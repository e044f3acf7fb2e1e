"""How long answers would get if nobody cut them off: what is learned where some end by themselves and others at their bound. Pure."""

from collections.abc import Sequence
from typing import Final

_NOTHING: Final = 1e-9  # of all answers: what halving and fading leave of none


def outliving(counts: Sequence[float], cut: Sequence[float], total: float) -> list[float]:
    """By bin of length, the share of `total` answers that would go on behind its upper edge; `cut`: of its `counts`, those that a bound ended.

    A life table: half of those that are cut in a bin were at risk of ending in it (Cutler and Ederer 1958, "Maximum utilization of the life
    table method in analyzing survival"). Where nothing is cut it is the plain share.
    """
    tails: list[float] = []
    left, scale, rest = total, 1.0, 0.0
    for count, lost in zip(counts, cut, strict=True):
        before, at_risk = scale * (left / total), left - lost / 2
        left = left - count if left - count > _NOTHING * total else 0.0
        if lost > 0 and before > 0:
            going_on = before * min(max(0.0, 1 - (count - lost) / at_risk), 1.0)
            if left > 0:
                scale = going_on * total / left
            else:
                rest = going_on  # nobody is left who could tell when it ends
        tails.append(rest or min(before, scale * (left / total)))
    return tails
