"""Models as labels: those that replicas serve, up to a thousand names; whatever else is asked for, and the rest, is `other`."""

from collections.abc import Callable, Iterable

from metrics.labels import OTHER, LabelGuard


class ModelLabels:
    """`known`: every model that any replica was ever known to serve. A name that was let through stays."""

    def __init__(self, known: Callable[[], frozenset[str]]) -> None:
        self._known = known
        self._guard = LabelGuard()

    def of(self, model: str) -> str:
        """One look-up for those that are known; a name that is new is looked for among all."""
        if (label := self._guard.fold(model)) is OTHER and not self._guard.full and model in self._known():
            self._guard.admit((model,))
            return model
        return label

    def told(self) -> Iterable[str]:
        """Of every model known, and `other` where that is one of them."""
        return dict.fromkeys(self.of(model) for model in sorted(self._known()))
