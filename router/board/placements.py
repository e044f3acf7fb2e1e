"""The last placements as the board shows them, from the decision ledger's records.

Lines are kept as long as they are among the last: scoring the candidates of one costs more than all the rest of its line.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from batching.decision_record import DecisionRecord, offers_of, score_on
from batching.decisions import Decisions
from batching.placement import Score
from batching.request import ServiceTier
from router.board.changes import SHOWN_PLACEMENTS
from router.board.document import Candidate, PlacementLine

_MOST_CANDIDATES: Final = 8  # of a line
_MOST_SCORED: Final = 5  # lines a look whose other candidates are scored, the newest: some 30 us a candidate


class PlacementLines:
    """Of one gateway."""

    def __init__(self) -> None:
        self._lines: dict[int, tuple[DecisionRecord, PlacementLine]] = {}  # by id() of the record, which is held beside

    def last(self, ledger: Decisions | None, unix_at_zero: float) -> tuple[PlacementLine, ...]:
        """Newest first; nothing where none are kept."""
        records = [] if ledger is None else ledger.recent(limit=SHOWN_PLACEMENTS)
        kept, self._lines = self._lines, {}
        scored = 0
        for record in records:
            before = kept.get(id(record))
            if before is None:
                line = _line(record, unix_at_zero, _candidates(record, all_of_them=scored < _MOST_SCORED))
                scored += 1
            else:
                line = _with_end(before[1], record)
            self._lines[id(record)] = record, line
        return tuple(line for _, line in self._lines.values())


def _line(record: DecisionRecord, unix_at_zero: float, candidates: Sequence[Candidate]) -> PlacementLine:
    placement = record.placement
    line = PlacementLine(
        request_id=record.request_id,
        unix_s=round(unix_at_zero + record.placed_s, 3),
        model=str(record.asked("model")),
        service_tier=ServiceTier(record.asked("service_tier")).label,
        replica=placement.replica,
        cost_tier=placement.cost_tier.value,
        reason=placement.reason,
        formula=placement.explain(),
        queued_s=round(max(0.0, record.placed_s - record.queued_s), 4),
        candidates=tuple(candidates),
    )
    return _with_end(line, record)


def _with_end(line: PlacementLine, record: DecisionRecord) -> PlacementLine:
    """What is known of it by now."""
    if line.outcome is not None:
        return line
    end = record.end()
    outcome = None if end.outcome is None else end.outcome.value
    ttft_s = None if end.first_token_s is None else round(max(0.0, end.first_token_s - record.asked("arrived_s")), 4)
    if outcome == line.outcome and ttft_s == line.ttft_s:
        return line
    return msgspec.structs.replace(line, outcome=outcome, ttft_s=ttft_s)


def _candidates(record: DecisionRecord, *, all_of_them: bool) -> list[Candidate]:
    """The choice first, then the runner-up, then those that had room, the cheapest first."""
    shown: dict[str, Score] = {record.replica: record.placement.score}
    shown.update((score.replica, score) for score in record.placement.candidates)
    others: list[Score] = []
    if all_of_them and not record.by_policy and len(record.offers) <= _MOST_CANDIDATES:
        scores = (score_on(record, offer) for offer in offers_of(record) if offer.replica not in shown)
        others = [score for score in scores if score is not None]
    others.sort(key=lambda score: (not score.meets_objective, score.usd, score.ttft_s))
    return [
        Candidate(
            replica=score.replica,
            usd=score.usd,
            ttft_s=round(score.ttft_s, 4),
            tpot_s=round(score.tpot_s, 5),
            cached_tokens=score.cached_tokens,
            headroom_blocks=score.headroom_blocks,
            meets=score.meets_objective,
        )
        for score in (*shown.values(), *others)
    ]
