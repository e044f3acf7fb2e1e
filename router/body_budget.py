"""How many bytes of request bodies the gateway holds at once, over all connections: from a body's first byte to its answer's end.

What is announced is not counted, only what has come: a client that says it will send much and sends nothing must not keep out others.
Decides who is refused; who reads a body takes for each part, and gives back all it took.
"""

from router.openai.errors import ApiError, bodies_full

_RETURNS_S = 8  # who is refused is told 1 to 8 s in turn, so that not all of a crowd come back in one second


class BodyBudget:
    """One for the whole front door."""

    __slots__ = ("held", "limit", "refused")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self.refused = 0

    def announced(self, size: int) -> bool:
        """Whether a body of that size would fit now; nothing is taken."""
        return self.held + size <= self.limit

    def take(self, size: int) -> bool:
        """A part has come; False: it must be let go, with all that was taken for its body before."""
        if self.held + size > self.limit:
            return False
        self.held += size
        return True

    def give_back(self, size: int) -> None:
        self.held -= size

    def refusal(self) -> ApiError:
        """What to tell one for whom there was no room; it is counted."""
        self.refused += 1
        return bodies_full(float(1 + (self.refused - 1) % _RETURNS_S))

    def __repr__(self) -> str:
        return f"<BodyBudget {self.held} of {self.limit} bytes>"
