"""The quickest first token that any kind of replica could give, were nothing else being prefilled there.

Replicas of one GPU type and size are one kind, so that asking costs as little for a thousand replicas as for ten. Decides nothing.
"""

from collections.abc import Callable, Iterable
from math import inf
from typing import Final, NamedTuple

from batching.offer import Offer
from batching.placement import Need

_KINDS_S: Final = 0.5  # a new kind of replica, or what was learned of one, may be noticed so late


class _Kind(NamedTuple):
    """What replicas of one GPU type and size have in common; rounded, so that learned factors do not tell them all apart."""

    token_s: float
    attention_s: float
    step_s: float
    decode_s: float
    longest_tokens: int


_UNKNOWN: Final[tuple[float, tuple[_Kind, ...]]] = (-inf, ())


class Kinds:
    """By model; `offers` says who serves one. O(kinds) but for a look at all replicas every `_KINDS_S`."""

    def __init__(self, offers: Callable[[str], Iterable[Offer]]) -> None:
        self._offers = offers
        self._known: dict[str, tuple[float, tuple[_Kind, ...]]] = {}

    def quickest_s(self, need: Need, now: float) -> float | None:
        """Of the kinds that are ready, not about to go, and meet the TPOT objective; None: none does."""
        prompt = need.request.prompt_tokens
        looked_s, kinds = self._known.get(need.request.model, _UNKNOWN)
        if not looked_s <= now < looked_s + _KINDS_S:
            kinds = self._look(need.request.model, now)
        new, longest = prompt, prompt + need.min_output_tokens
        if need.cached_tokens:
            new -= min(max(need.cached_tokens.values()), prompt - 1)
        read, tpot_s, quickest_s = prompt - new / 2, need.tpot_objective_s, inf
        for token_s, attention_s, step_s, decode_s, longest_tokens in kinds:
            if decode_s <= tpot_s and longest <= longest_tokens:
                time_s = step_s + token_s * new + attention_s * new * read
                if time_s < quickest_s:
                    quickest_s = time_s
        return quickest_s if quickest_s < inf else None

    def _look(self, model: str, now: float) -> tuple[_Kind, ...]:
        found = {
            _kind(offer)
            for offer in self._offers(model)
            if offer.open and (offer.window is None or not offer.window.closes)
        }
        kinds = tuple(sorted(found, key=lambda kind: kind.token_s))
        self._known[model] = (now, kinds)
        return kinds


def _kind(offer: Offer) -> _Kind:
    step_s = max(offer.weights_s, 0.0) + offer.step_wait_s
    alone_s = offer.decode_s if offer.empty else offer.weights_s
    return _Kind(
        float(f"{offer.token_s:.2g}"),
        float(f"{offer.attention_s:.2g}"),
        float(f"{step_s:.1g}"),
        float(f"{alone_s:.2g}"),
        offer.longest_tokens,
    )
