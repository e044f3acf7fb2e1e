"""How an attempt at one replica failed, and so what may be done about it."""

from router.exchange import Exchange
from router.openai.errors import ApiError, upstream_lost


class AttemptFailed(Exception):
    """One replica did not deliver, or not all.

    `repeatable`: another may. `begun`: the client has seen some of the answer. `moved`: it was we who ended it. `spent`: an engine worked
    for nothing, and another will have to; one that died or was never reached does not work any more. `reached`: an engine has seen it.
    """

    def __init__(
        self,
        error: ApiError,
        *,
        repeatable: bool,
        begun: bool = False,
        moved: bool = False,
        spent: bool = True,
        reached: bool = True,
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.repeatable = repeatable
        self.begun = begun
        self.moved = moved
        self.spent = spent
        self.reached = reached

    @property
    def lapsed(self) -> bool:
        """The place was lost before anything was sent; nothing is wrong with the replica."""
        return self.moved and not self.reached

    @property
    def label(self) -> str:
        """As a metric tells it."""
        if self.lapsed:
            return "lapsed"
        return "rejected" if self.error.status < 500 or self.error.status == 503 else "5xx"


def moved(exchange: Exchange, *, reached: bool = True) -> AttemptFailed:
    """It was we who ended it."""
    begun = exchange.chunks is not None
    return AttemptFailed(upstream_lost(), repeatable=True, begun=begun, moved=True, spent=False, reached=reached)
