"""How long answers would get if nobody cut them off: what is learned where some end by themselves and others at their bound. Pure."""

from collections.abc import Sequence


def outliving(counts: Sequence[float], cut: Sequence[float], total: float) -> list[float]:
    """By bin of length, the share of `total` answers that would go on behind its upper edge; `cut`: of its `counts`, those that a bound ended.

    A life table: half of those that are cut in a bin were at risk of ending in it (Cutler and Ederer 1958, "Maximum utilization of the life
    table method in analyzing survival"). Where nothing is cut it is the plain share.
    """
    tails: list[float] = []
    left, scale, rest = total, 1.0, 0.0
    for count, lost in zip(counts, cut, strict=True):
        before, at_risk = scale * (left / total), left - lost / 2
        left -= count
        if lost > 0:
            going_on = before * max(0.0, 1 - (count - lost) / at_risk)
            if left > 0:
                scale = going_on * total / left
            else:
                rest = going_on  # nobody is left who could tell when it ends
        tails.append(rest or max(0.0, scale * (left / total)))
    return tails
