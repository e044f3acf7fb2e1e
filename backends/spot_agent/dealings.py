"""What one gateway has been told, and therefore what to do next; pure: time and answers are arguments.

Level-triggered: it compares what stands with what was told, so that a lost answer, a gateway that was restarted and a notice that
changed meanwhile all lead to the same next step. Telling twice is harmless (docs/spot-agent.md).
"""

from dataclasses import dataclass
from enum import Enum, auto
from http import HTTPStatus
from typing import Final

from backends.spot_agent.admin_client import ReplicaView
from backends.spot_agent.notice import Kind, Notice

# A deadline is a cloud's estimate, and some events are seen only once it has passed: try at least so long to tell of it.
_TRY_AT_LEAST_S: Final = 30.0


class Step(Enum):
    TELL = auto()  # post the notice that stands
    RESTORE = auto()  # take back what was told
    LOOK = auto()  # ask how far the gateway is
    REST = auto()  # until something stands or no longer does


@dataclass(slots=True)
class Dealings:
    """With one gateway. `told` counts from the first try on: an answer may be lost on its way back."""

    told: Notice | None = None
    certain: bool = True  # whether the gateway is known to hold what was told
    released: bool = False

    def next(self, stands: Notice | None, now_unix_s: float) -> Step:
        if self.told is not None and (stands is None or self._is_over(self.told, stands)):
            return Step.RESTORE
        if stands is None:
            return Step.REST
        if not self.certain or self._is_news(stands):
            return Step.REST if now_unix_s > give_up_unix_s(stands) else Step.TELL
        if self.released:
            return Step.REST
        if stands.ends_service and stands.deadline_unix_s is not None and now_unix_s > stands.deadline_unix_s:
            return Step.REST
        return Step.LOOK

    def telling(self, notice: Notice) -> None:
        """It is on its way."""
        self.told, self.certain, self.released = notice, False, False

    def answered(self, view: ReplicaView) -> None:
        """After a TELL or a LOOK."""
        assert self.told is not None
        self.certain = True
        self.released = self.told.ends_service and view.released

    def failed(self) -> None:
        """Nobody answered a LOOK: the gateway may have been restarted and know nothing."""
        self.certain = False

    def restored(self) -> None:
        self.told, self.certain, self.released = None, True, False

    @staticmethod
    def _is_over(told: Notice, stands: Notice) -> bool:
        """Whether what stands is less than what was told, so that the gateway must forget that first: there the sooner deadline wins."""
        same_kind = told.kind is stands.kind
        return told.is_graver_than(stands) or (same_kind and told.id != stands.id and told.is_sooner_than(stands))

    def _is_news(self, stands: Notice) -> bool:
        return (
            self.told is None
            or stands.id != self.told.id
            or stands.is_graver_than(self.told)
            or stands.is_sooner_than(self.told)
        )


def give_up_unix_s(notice: Notice) -> float:
    """When telling of it is no use any more; infinite where nobody knows the deadline."""
    if notice.deadline_unix_s is None:
        return float("inf")
    return max(notice.deadline_unix_s, notice.observed_unix_s + _TRY_AT_LEAST_S)


def nothing_to_restore(status: int | None) -> bool:
    """Whether a refused RESTORE is as good as one done: nothing stood, or the replica is not this gateway's any more."""
    return status in {HTTPStatus.CONFLICT, HTTPStatus.NOT_FOUND}


def is_operators_own(told: Notice, view: ReplicaView) -> bool:
    """Whether a restore would end somebody else's drain: a hint drains nothing."""
    return told.kind is Kind.REBALANCE and view.lifecycle == "draining"
