"""A drain as an operator watches it: asked for, counted down, released or said to have failed; and the table of replicas."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final

from backends.spot_agent.admin_client import AdminClient, AdminError, ReplicaView

_LOOK_S: Final = 0.5
_GRACE_S: Final = 15.0  # after the deadline: what is cut there must still end
_SILENCE_S: Final = 30.0  # of a gateway that may be restarting
_ELSEWHERE: Final = ("ready",)  # whoever is this is not being drained any more

Say = Callable[[str], None]


def wall_clock() -> float:
    """Unix seconds."""
    return time.time()  # noqa: TID251 - deadlines are wall time


class Drain:
    """Of one replica of one gateway; `say` gets a line whenever something has changed."""

    def __init__(self, admin: AdminClient, name: str, say: Say, *, wall: Callable[[], float] = wall_clock) -> None:
        self._admin = admin
        self._name = name
        self._say = say
        self._wall = wall
        self._said = ""

    async def run(self, deadline_s: float | None, *, wait: bool) -> int:
        """The exit code: 0 once released (or, without waiting, accepted), else 1; raises AdminError where that cannot be found out."""
        view = await self._admin.drain(self._name, deadline_s)
        self._tell(view)
        while wait and not view.released:
            if view.lifecycle in _ELSEWHERE:
                self._say(f"{self._name}: is {view.lifecycle} again; somebody has ended the drain")
                return 1
            if self._is_overdue(view):
                self._say(
                    f"{self._name}: the deadline has passed with {_requests(view.requests)} left; "
                    "the gateway still sends it nothing, and penstock drain can be run again"
                )
                return 1
            await asyncio.sleep(_LOOK_S)
            view = await self._look()
            self._tell(view)
        if wait:
            self._say(f"{self._name}: released")
        return 0

    async def _look(self) -> ReplicaView:
        """Patient with a gateway that does not answer for a while; raises AdminError."""
        loop = asyncio.get_running_loop()
        silent_until_s = loop.time() + _SILENCE_S
        while True:
            try:
                return await self._admin.replica(self._name)
            except AdminError as error:
                if (error.status is not None and error.status < 500) or loop.time() >= silent_until_s:
                    raise
                await asyncio.sleep(_LOOK_S)

    def _is_overdue(self, view: ReplicaView) -> bool:
        return view.deadline_unix_s is not None and self._wall() > view.deadline_unix_s + _GRACE_S

    def _tell(self, view: ReplicaView) -> None:
        """A line where the state or the number has changed; the time left alone is no news."""
        state = f"{view.lifecycle}, {_requests(view.requests)} left"
        if state == self._said or view.released:
            return
        self._said = state
        left = left_text(view, self._wall())
        self._say(f"{self._name}: {state}{f', {left} to the deadline' if left else ''}")


def listed(views: Sequence[ReplicaView], now_unix_s: float) -> str:
    """A table, for people."""
    rows = [("NAME", "LIFECYCLE", "REQUESTS", "DEADLINE", "WHY")]
    rows += [
        (
            view.name,
            f"{view.lifecycle}, released" if view.released else view.lifecycle,
            str(view.requests),
            left_text(view, now_unix_s) or "-",
            view.reason or view.detail or "-",
        )
        for view in views
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def left_text(view: ReplicaView, now_unix_s: float) -> str:
    """Of its deadline; empty where there is none."""
    if view.deadline_unix_s is None:
        return ""
    left_s = view.deadline_unix_s - now_unix_s
    return f"{left_s:.0f} s" if left_s > 0 else "passed"


def _requests(number: int) -> str:
    return "1 request" if number == 1 else f"{number} requests"
