"""Stop strings across a seam: text passes only once it can no longer be the beginning of one.

Decides where an answer's text ends. Needed where two engines give one answer: each looks only at what it says itself. Pure.
"""

from collections.abc import Sequence


class StopGuard:
    """One choice's text, in pieces. `kept`: the stop string itself is part of the answer."""

    __slots__ = ("_held", "_kept", "_longest", "_said", "_stops", "stopped")

    def __init__(self, stops: Sequence[str], *, kept: bool = False, said: str = "") -> None:
        """`said`: what the client has already; of it only the end matters."""
        self._stops = tuple(stops)
        self._longest = max(map(len, self._stops))
        self._kept = kept
        self._said = self._end_of(said)
        self._held = ""
        self.stopped: str | None = None  # the stop string that ended it

    def feed(self, text: str) -> str:
        """What of it all may be passed on now; nothing after a stop."""
        if self.stopped is not None:
            return ""
        said, held = len(self._said), self._held + text
        window = self._said + held
        found = [(at, stop) for stop in self._stops if (at := window.find(stop)) >= 0]
        if found:
            at, self.stopped = min(found)
            end = at + len(self.stopped) if self._kept else at
            return held[: max(0, end - said)]
        ready = held if self._kept else held[: max(0, len(held) - self._longest + 1)]
        return self._pass(ready, held)

    def rest(self) -> str:
        """The answer is over: what was held back."""
        return self._pass(self._held, self._held)

    def _pass(self, ready: str, held: str) -> str:
        self._held = held[len(ready) :]
        self._said = self._end_of(self._said + ready)
        return ready

    def _end_of(self, text: str) -> str:
        return text[-(self._longest - 1) :] if self._longest > 1 else ""


def stop_strings(value: object) -> tuple[str, ...]:
    """Of a request's `stop`; empty strings stop nothing."""
    found = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(stop for stop in found if isinstance(stop, str) and stop)
