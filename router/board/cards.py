"""From what the scheduler and the watch know to what is shown: a card a replica, the money of all (pure)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from batching.replica import Lifecycle, ReplicaState
from router.board.document import Money, Pulse, ReplicaCard
from router.board.part import NOTHING, Held

_AGE_STEP_S: Final = (
    5  # looks come every second, and their age is never the same twice: nobody needs a new card for that
)
_MONEY_OVER: Final = 60  # pulses
_SECONDS: Final = 3600
_MILLION: Final = 1e6


@dataclass(slots=True)  # not frozen: a thousand are made each second, at a third of the cost
class Facts:
    """What is known of a replica beside its state."""

    backend: str
    why: str = ""
    reason: str | None = None
    deadline_unix_s: float | None = None
    on_demand_usd_per_hour: float | None = None


GONE: Final = Facts(backend="", why="no longer in the configuration; its last requests run on")


def cards(states: Iterable[ReplicaState], facts: Mapping[str, Facts], held: Mapping[str, Held]) -> list[ReplicaCard]:
    """In the order of `states`. `held`: by all workers together."""
    return [card(state, facts.get(state.profile.id, GONE), held.get(state.profile.id, NOTHING)) for state in states]


def card(state: ReplicaState, facts: Facts, held: Held) -> ReplicaCard:
    """Of one replica."""
    profile, load = state.profile, state.load
    usage = None if load is None else load.kv_usage_ratio
    return ReplicaCard(
        name=profile.id,
        models=tuple(profile.models),
        backend=facts.backend,
        gpu=profile.gpu,
        gpus=profile.gpu_count,
        cost_tier=str(profile.cost_tier),  # as `.value`, which takes longer than all the rest
        usd_per_hour=profile.usd_per_hour,
        on_demand_usd_per_hour=facts.on_demand_usd_per_hour,
        lifecycle=str(state.lifecycle),
        why=facts.why,
        reason=facts.reason,
        deadline_unix_s=facts.deadline_unix_s,
        circuit=held.circuit,
        running=held.running,
        max_num_seqs=state.max_num_seqs,
        waiting=None if load is None else load.waiting,
        kv_blocks=profile.kv_blocks,
        block_size=profile.block_size,
        held_blocks=held.held_blocks,
        reserved_blocks=held.reserved_blocks,
        foreign_blocks=held.foreign_blocks,
        kv_usage_ratio=None if usage is None else round(usage, 4),
        output_tokens_per_s=held.output_tokens_per_s,
        input_tokens_per_s=held.input_tokens_per_s,
        usd_per_million_output_tokens=_usd_per_million(profile.usd_per_hour / _SECONDS, held.output_tokens_per_s),
        figures_age_s=None if state.load_age_s is None else float(state.load_age_s // _AGE_STEP_S * _AGE_STEP_S),
    )


def money(shown: Sequence[ReplicaCard], pulses: Sequence[Pulse]) -> Money:
    """Of every machine that is there: one that is down is not, as far as anybody can tell from here."""
    paid = [card for card in shown if card.lifecycle != Lifecycle.DOWN.value]
    usd_per_hour = sum((card.usd_per_hour for card in paid), start=0.0)
    on_demand = [card.on_demand_usd_per_hour for card in paid]
    known = [usd for usd in on_demand if usd is not None]
    busy = [card for card in paid if card.running or card.output_tokens_per_s]
    lately = pulses[-_MONEY_OVER:]
    tokens = sum(pulse.output_tokens for pulse in lately)
    return Money(
        usd_per_hour=round(usd_per_hour, 4),
        on_demand_usd_per_hour=round(sum(known, start=0.0), 4) if len(known) == len(on_demand) else None,
        busy_usd_per_hour=round(sum((card.usd_per_hour for card in busy), start=0.0), 4),
        usd_per_million_output_tokens=_usd_per_million(
            usd_per_hour / _SECONDS, tokens / len(lately) if lately else 0.0
        ),
    )


def _usd_per_million(usd_per_s: float, tokens_per_s: float) -> float | None:
    return round(usd_per_s / tokens_per_s * _MILLION, 4) if tokens_per_s > 0 else None
