"""Doubts replicas whose looks are fine, asks them for one token, and takes those that give none out of service until they do.

Decides when a doubt becomes a question and what its answer means; what is a sign is `backends.progress`', when attempts have failed
too often `backends.breaker`'s, whether a replica can be spared `batching.outliers`'. A replica's lifecycle is the watch's, which is
asked to `move` it. One task a question, in the gateway's task group; one timer for all streams.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from backends.backend import ProbeResult, ServedModel
from backends.breaker import Breaker, BreakerState, Result, Trip, result_of
from backends.one_token import ask_one_token
from backends.progress import Expected, Progress, Sign
from batching.hearsay import Accusation, Hearsay
from batching.outliers import may_go, needed
from batching.replica import Lifecycle
from batching.request import ReplicaId
from batching.scheduler import Scheduler
from batching.shares import HolderId
from config.health import Health
from metrics.catalog import Metrics
from router.profiles import profile_of
from router.report import Wait
from router.streams import Streams
from router.suspicion_cases import AT_WORK, Case, Cases, said
from router.watched import Watched

log = logging.getLogger("penstock.fleet")

_TICK_S: Final = 0.25  # how often silent streams are looked at: what it adds to the time until one is found
_RETURN: Final = "no_first_token"  # why a breaker stays open whose replica comes back
_HEARSAY: Final = "other_gateway"  # why it is asked that only others doubt; a metric label
_SLOW_SIGNS = frozenset({Sign.STANDING, Sign.LATE})
_LEAVING = frozenset({Lifecycle.DRAINING, Lifecycle.RECLAIMING})


class Suspicion:
    """One `Case` a watched replica; `fleet` is the watch's own table."""

    def __init__(
        self,
        health: Health,
        scheduler: Scheduler,
        fleet: Mapping[ReplicaId, Watched],
        move: Callable[[Watched, Lifecycle, float, str], None],
        *,
        metrics: Metrics,
        streams: Streams,
        tasks: asyncio.TaskGroup,
    ) -> None:
        self._health = health
        self._scheduler = scheduler
        self._fleet = fleet
        self._move = move
        self._metrics = metrics
        self._streams = streams
        self._tasks = tasks
        self._cases = Cases(scheduler, fleet, health.error_window_s)
        self._hearsay = Hearsay()
        self.on_found: Callable[[], None] = lambda: None  # what `findings` says may have changed
        self._heard_from_s = 0.0  # since when the loop has been awake enough to hear engines
        self._ticker = tasks.create_task(self._tick_on(), name="suspicion") if health.enabled else None

    # -- what is seen ------------------------------------------------------------------------------------------------

    def added(self, watched: Watched, now: float) -> None:
        self._cases[watched.id] = Case(Breaker(self._health), Progress(self._health.silence_s, now))

    def removed(self, watched: Watched) -> None:
        case = self._cases.pop(watched.id, None)
        if case is not None:
            case.drop_question()

    def close(self) -> None:
        if self._ticker is not None:
            self._ticker.cancel()
        for case in self._cases.values():
            case.drop_question()

    def attempted(self, replica: ReplicaId, outcome: str, wait: Wait | None) -> None:
        """An attempt ended: a label of `upstream_attempts_total`, and how long its first token took."""
        watched, case = self._fleet.get(replica), self._cases.get(replica)
        if watched is None or case is None or not self._health.enabled or watched.lifecycle not in AT_WORK:
            return
        slow = wait is not None and wait.seconds > self._scheduler.patience_s(replica, wait.predicted_s)
        result = result_of(outcome, slow=slow)
        if result is None:
            return
        now = asyncio.get_running_loop().time()
        if result in {Result.OK, Result.SLOW}:
            case.progress.answered(now)
        trip = case.breaker.attempted(result, now)
        if trip is Trip.SLOW and self._cases.all_are_slow(watched, now):
            case.breaker.withdraw(now)
        elif trip is not None:
            self._doubt(watched, case, trip, said(trip, self._health), now)

    def looked(self, watched: Watched, found: ProbeResult | None, now: float) -> None:
        """A look is over: has the engine made steps since the last one, and do first tokens come?"""
        case = self._cases[watched.id]
        if found is None or not self._health.enabled or watched.lifecycle not in AT_WORK:
            return
        iterations, running = found.metrics.get("iteration_total"), found.metrics.get("running")
        expected = self._expected(watched.id)
        stood_s = case.progress.standing(
            None if iterations is None else int(iterations),
            busy=bool(running) or self._streams.requests_on(watched.id) > 0,
            expected=expected,
            now=now,
        )
        if stood_s is not None:
            why = f"no engine step for {stood_s:.1f} s with requests running"
            self._doubt(watched, case, Sign.STANDING, why, now, stood_s)
            return
        missed = self._scheduler.overdue(watched.id, now)
        still_s = case.progress.late(missed, expected=expected, now=now)
        if still_s is not None and not self._cases.all_are_slow(watched, now):
            why = f"{missed} first tokens are long overdue, and nothing came for {still_s:.1f} s"
            self._doubt(watched, case, Sign.LATE, why, now, still_s)

    def moved(self, watched: Watched, now: float) -> None:
        """Its lifecycle has changed, by whomever."""
        case = self._cases[watched.id]
        self.on_found()
        if watched.lifecycle is Lifecycle.WARMING:
            self._begin(case, watched, lambda: self._warm(watched, case))
        elif watched.lifecycle is Lifecycle.DOWN:
            case.drop_question()
            case.progress.forget(now)
        elif watched.lifecycle is Lifecycle.READY:
            watched.doubt, case.held = "", False

    def may_return(self, watched: Watched, now: float) -> bool:
        """Whether a replica that is down and looks well may be asked for a token: its pause is over, or nobody else is left."""
        breaker = self._cases[watched.id].breaker
        return (
            breaker.state is BreakerState.CLOSED or breaker.may_ask(now) or needed(watched.id, self._cases.standings())
        )

    def show(self) -> None:
        """Before a scrape."""
        gauge = self._metrics.replica_circuit_state
        gauge.clear()
        for replica, case in self._cases.items():
            for state in BreakerState:
                gauge.labels(replica, state.value).set(case.breaker.state is state)

    def circuit(self, replica: ReplicaId) -> BreakerState:
        case = self._cases.get(replica)
        return BreakerState.CLOSED if case is None else case.breaker.state

    # -- other gateways ----------------------------------------------------------------------------------------------

    def findings(self) -> dict[ReplicaId, str]:
        """What this gateway itself has against replicas, in a word each; what it has only heard is not among it."""
        return {replica: found for replica, case in self._cases.items() if (found := case.finding()) is not None}

    def heard(self, by: Mapping[HolderId, Mapping[ReplicaId, str]]) -> None:
        """All that other gateways have against replicas now. What is new is a reason to ask here, never to eject unasked."""
        now = asyncio.get_running_loop().time()
        news = self._hearsay.take(by, now)
        if not self._health.enabled:
            return
        for replica in news.lapsed.intersection(self._cases.keys()):
            watched, case = self._fleet[replica], self._cases[replica]
            if case.by_hearsay and case.question is not None:
                case.drop_question()
                self._trust(watched, "nobody doubts it any more", now)
            elif replica in news.cleared and case.breaker.hasten(now):  # it lives: no need to wait out the pause
                watched.wake.set()
        for accusation in news.accusations:
            self._accused(accusation, now)

    def _accused(self, accusation: Accusation, now: float) -> None:
        """No new work while it is asked, unless it cannot be spared, or its accuser was wrong before."""
        watched, case = self._fleet.get(accusation.replica), self._cases.get(accusation.replica)
        if watched is None or case is None or watched.lifecycle not in AT_WORK:
            return
        if case.question is not None or case.breaker.state is not BreakerState.CLOSED:
            return  # it is doubted here as well
        why = f"{accusation.by} doubts it: {accusation.reason}"
        ready = watched.lifecycle is Lifecycle.READY
        if accusation.credible and ready and may_go(watched.id, self._cases.standings()):
            self._suspect(watched, case, _HEARSAY, why, now, hearsay=True)
        else:
            self._question(watched, case, _HEARSAY, why, hearsay=True)

    def _refuted(self, watched: Watched, why: str, now: float) -> None:
        self._hearsay.refuted(watched.id, now)
        self._trust(watched, why, now)

    # -- time --------------------------------------------------------------------------------------------------------

    async def _tick_on(self) -> None:
        loop = asyncio.get_running_loop()
        self._heard_from_s = loop.time()
        while True:
            due_s = loop.time() + _TICK_S
            await asyncio.sleep(_TICK_S)
            now = loop.time()
            if now > due_s + _TICK_S:
                self._heard_from_s = now  # we slept, not they: what they sent meanwhile is not read yet
            try:
                self._tick(now)
            except Exception:  # the watch goes on, whatever one turn of it met
                log.exception("looking at streams failed")

    def _tick(self, now: float) -> None:
        for watched in tuple(self._fleet.values()):
            case = self._cases[watched.id]
            if watched.lifecycle not in AT_WORK:
                continue
            self._hear(watched, case, now)
            if case.question is not None:
                if case.by_hearsay and (self._streams.last_bytes_s(watched.id) or 0.0) > case.asked_s:
                    case.drop_question()
                    self._refuted(watched, "its streams move", now)
                continue
            if case.breaker.state is not BreakerState.CLOSED:
                self._wait_out(watched, case, now)
            elif watched.lifecycle is Lifecycle.SUSPECT:  # its question broke off
                self._move(watched, Lifecycle.READY, now, "no longer doubted")

    def _hear(self, watched: Watched, case: Case, now: float) -> None:
        last_s = self._streams.last_bytes_s(watched.id)
        expected = _UNASKED if last_s is None else self._expected(watched.id)
        silence_s = case.progress.silent(last_s, heard_from_s=self._heard_from_s, expected=expected, now=now)
        if silence_s is not None:
            why = f"its streams got nothing for {silence_s:.2f} s"
            self._doubt(watched, case, Sign.SILENT, why, now, silence_s)

    def _wait_out(self, watched: Watched, case: Case, now: float) -> None:
        """Its breaker is open and nobody asks it."""
        breaker = case.breaker
        if watched.lifecycle is Lifecycle.SUSPECT and needed(watched.id, self._cases.standings()):
            self._move(watched, Lifecycle.READY, now, "still doubted, but nobody else is left")
        if breaker.may_ask(now):
            breaker.ask()
            self._begin(case, watched, lambda: self._ask_again(watched, case))
        elif watched.lifecycle is Lifecycle.READY and may_go(watched.id, self._cases.standings()):
            # What could not be spared before can be now.
            self._suspect(watched, case, breaker.reason, f"its breaker is open: {breaker.reason}", now)

    # -- doubts and questions ----------------------------------------------------------------------------------------

    def _doubt(
        self, watched: Watched, case: Case, reason: Sign | Trip, why: str, now: float, still_s: float = 0.0
    ) -> None:
        """There is a sign: no new work while it is asked. One that cannot be spared works on. `still_s`: since when it stands."""
        if case.question is not None:
            if case.by_hearsay and reason in _SLOW_SIGNS:
                case.reason, case.by_hearsay = reason.value, False  # asked already, with as much patience
            if not case.by_hearsay:
                return
        standings = self._cases.standings()
        if watched.lifecycle is Lifecycle.READY and may_go(watched.id, standings):
            self._suspect(watched, case, reason, why, now, still_s)
        elif watched.lifecycle is Lifecycle.SUSPECT or (
            watched.lifecycle in _LEAVING and not needed(watched.id, standings)
        ):
            self._question(watched, case, reason, why, still_s)
        elif not case.held:
            case.held = True
            log.warning("replica %s: %s; it cannot be spared, and works on", watched.config.name, why)

    def _suspect(
        self, watched: Watched, case: Case, reason: str, why: str, now: float, still_s: float = 0.0, *, hearsay: bool = False
    ) -> None:  # fmt: skip
        self._move(watched, Lifecycle.SUSPECT, now, why)
        watched.doubt = why
        self._question(watched, case, reason, why, still_s, hearsay=hearsay)

    def _question(
        self, watched: Watched, case: Case, reason: str, why: str, still_s: float = 0.0, *, hearsay: bool = False
    ) -> None:
        """`hearsay`: nothing is held against it here."""
        self._metrics.replica_suspicions_total.labels(watched.id, str(reason)).inc()
        self._begin(case, watched, lambda: self._examine(watched, case, reason, why, still_s))
        case.reason, case.by_hearsay = str(reason), hearsay
        self.on_found()

    def _begin(self, case: Case, watched: Watched, question: Callable[[], Awaitable[None]]) -> None:
        async def guarded() -> None:
            try:
                await question()
            except Exception:  # one question must not end the gateway's task group
                log.exception("the question to %s broke off", watched.config.name)
                case.question = None
            self.on_found()

        case.drop_question()
        case.reason, case.by_hearsay, case.asked_s = "", False, asyncio.get_running_loop().time()
        case.question = self._tasks.create_task(guarded(), name=f"one-token-{watched.config.name}")

    async def _examine(self, watched: Watched, case: Case, reason: str, why: str, still_s: float) -> None:
        """One token, soon; for a sign of standing still, any movement will do as well."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        sign, hearsay = reason if isinstance(reason, Sign) else None, case.by_hearsay
        missing = await self._ask(watched, self._token_timeout_s(watched, case, sign, began_s))
        now, case.question = loop.time(), None
        if missing is None:
            case.progress.answered(now)
        last_s = self._streams.last_bytes_s(watched.id)
        moves = (sign is not None or hearsay) and max(case.progress.moved_s, last_s or 0.0) >= began_s
        if missing is not None and not moves:
            self._eject(watched, case, reason, f"{why}; {missing}", now)
        elif hearsay:
            self._refuted(watched, "it gave a token" if missing is None else "it moves", now)
        elif sign is not None:
            case.progress.refuted(sign, still_s + now - began_s, now)
            case.breaker.close(now)  # open where it could not be spared before
            self._trust(watched, "it gave a token" if missing is None else "it moves again", now)
        # Else it gives tokens and yet fails too often: its breaker says when it is tried again.

    async def _ask_again(self, watched: Watched, case: Case) -> None:
        """The pause of an open breaker is over, and its replica still in service or suspect."""
        loop = asyncio.get_running_loop()
        missing = await self._ask(watched, self._token_timeout_s(watched, case, None, loop.time()))
        now, case.question = loop.time(), None
        if missing is None:
            case.breaker.close(now)
            self._trust(watched, "it gave a token", now)
            return
        reason = case.breaker.reason
        case.breaker.open(reason, now)
        self._eject(watched, case, reason, f"{reason}; {missing}", now)

    async def _warm(self, watched: Watched, case: Case) -> None:
        """It was down and its looks are fine: one token, and it takes work."""
        if case.breaker.state is BreakerState.OPEN:
            case.breaker.ask()
        missing = await self._ask(watched, self._health.warming_timeout_s)
        now, case.question = asyncio.get_running_loop().time(), None
        if missing is None:
            case.breaker.close(now)
            watched.doubt = ""
            if watched.lifecycle is Lifecycle.WARMING:
                self._move(watched, Lifecycle.READY, now, "it gave a token")
        else:
            case.breaker.open(case.breaker.reason or _RETURN, now)
            watched.doubt = missing
            if watched.lifecycle is Lifecycle.WARMING:
                self._move(watched, Lifecycle.DOWN, now, missing)

    def _trust(self, watched: Watched, why: str, now: float) -> None:
        if watched.lifecycle is Lifecycle.SUSPECT:
            self._move(watched, Lifecycle.READY, now, why)

    def _eject(self, watched: Watched, case: Case, reason: str, why: str, now: float) -> None:
        """It gave no token. Unless it cannot be spared - others may have gone meanwhile - it is down."""
        if case.breaker.state is not BreakerState.OPEN:
            case.breaker.open(reason, now)
            self.on_found()
        spared = watched.lifecycle is not Lifecycle.READY and not needed(watched.id, self._cases.standings())
        if watched.lifecycle is Lifecycle.SUSPECT and not spared:
            self._move(watched, Lifecycle.READY, now, f"{why}; but nobody else is left")
            case.held = True
        elif watched.lifecycle in AT_WORK and spared:
            watched.doubt = why
            self._metrics.replica_ejections_total.labels(watched.id, str(reason)).inc()
            self._move(watched, Lifecycle.DOWN, now, why)

    async def _ask(self, watched: Watched, timeout_s: float) -> str | None:
        try:
            return await ask_one_token(
                watched.backend,
                _models(watched),
                timeout_s=timeout_s,
                first=watched.config.priority_scheduling,
            )
        except Exception:  # whatever a backend met: it gave no token
            log.exception("asking %s for a token failed", watched.config.name)
            return "asking for a token failed; see the log"

    # -- looking -----------------------------------------------------------------------------------------------------

    def _token_timeout_s(self, watched: Watched, case: Case, sign: Sign | None, now: float) -> float:
        return case.progress.token_timeout_s(sign, self._health.token_timeout_s, self._expected(watched.id), now)

    def _expected(self, replica: ReplicaId) -> Expected:
        return Expected(*self._scheduler.next_step_s(replica))


_UNASKED = Expected(0.0, known=False)  # where there is no stream


def _models(watched: Watched) -> tuple[ServedModel, ...]:
    """Those whose tokens can be asked for."""
    told = {model.name: model for model in watched.known.models} if watched.known is not None else {}
    serves = profile_of(watched.config, watched.known).models
    return tuple(told.get(name, ServedModel(name=name, kind=kind.value)) for name, kind in serves.items())
