"""A placement's formula with its values, in words: why this replica, what each term was, what was predicted and what happened.

The totals are those that `batching.placement` itself comes to on the recorded values; what leads to them is spelled out here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Final

from batching.audit import Judged, Signal
from batching.blocks import UNBOUNDED
from batching.decision_record import DecisionRecord, judged, need_of, offers_of, score_on
from batching.offer import Offer
from batching.placement import (
    EQUAL_RATIO,
    PRICE_RATIO,
    Need,
    Score,
    blocks_needed,
    cached_on,
    could_ever_hold,
    reserved_output,
)
from batching.request import ServiceTier
from config.schema import CostTier

_SHOWN: Final = 12  # candidates; the rest are counted

_REASONS: Final = {
    "prefix_hit": "the cheapest of those sure to be in time, because it holds the beginning of the prompt in its cache",
    "cost": "the cheapest of those sure to be in time",
    "kv_headroom": "about as cheap as others that are sure to be in time, and of those the soonest, or with the most room left",
    "fallback": "none was sure to be in time, so the one with the earliest first token",
    "policy": "another router's rule decides here (scheduling.policy), and gives no reasons",
}
_NAMES: Final = {
    Signal.TTFT: "first token",
    Signal.TPOT: "per token after it",
    Signal.OUTPUT: "tokens of the answer",
    Signal.CACHED: "prompt tokens cached",
    Signal.FINISH: "whole answer",
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """One of those that were tested."""

    offer: Offer
    score: Score | None  # None: no room


def explain(record: DecisionRecord) -> str:
    """Some forty lines."""
    need = need_of(record)
    candidates = _ranked(record)
    parts: list[Iterator[str]] = [_asked(record, need), _table(record, need, candidates)]
    if not record.by_policy:
        chosen = candidates[0]
        parts.append(_formula(need, chosen, "the choice"))
        other = _runner_up(record, candidates)
        if other is not None:
            parts.append(_formula(need, other, "the runner-up"))
    parts.append(_outcome(record))
    return "\n\n".join("\n".join(part) for part in parts)


def time(seconds: float) -> str:
    """As people say it."""
    if seconds == inf:
        return "no limit"
    if 0 < abs(seconds) < 1e-6:
        return "under 1 us"
    if 0 < abs(seconds) < 9.995e-4:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds * 1e3:.3g} ms" if abs(seconds) < 0.9995 else f"{seconds:,.2f} s"


def money(usd: float) -> str:
    """Of a thousand such requests: one costs too little to be read."""
    return "nothing more" if usd == 0 else f"${usd * 1000:,.4f}"


def _ranked(record: DecisionRecord) -> list[Candidate]:
    """The choice first; then by cost or, where time decided, by first token; those without room last."""
    found = [Candidate(offer, score_on(record, offer)) for offer in offers_of(record)]
    by_time = record.placement.reason == "fallback"

    def rank(one: Candidate) -> tuple[bool, bool, float, float]:
        score = one.score
        if score is None:
            return one.offer.replica != record.replica, True, 0.0, 0.0
        first = score.ttft_s if by_time else score.usd
        return one.offer.replica != record.replica, False, first, score.machine_s

    return sorted(found, key=rank)


def _runner_up(record: DecisionRecord, candidates: Sequence[Candidate]) -> Candidate | None:
    shown = {score.replica for score in record.placement.candidates[1:]}
    others = [one for one in candidates[1:] if one.score is not None]
    return next((one for one in others if one.offer.replica in shown), others[0] if others else None)


def _asked(record: DecisionRecord, need: Need) -> Iterator[str]:
    request, placement = need.request, record.placement
    waited_s = record.placed_s - record.queued_s
    again = f", not on {', '.join(sorted(request.avoid))}, which had been tried or were slow" if request.avoid else ""
    if placement.held_for is not None:
        again += f", though another had room, for {placement.held_for}, which holds more of its beginning"
    yield f"{record.request_id} went to {record.replica}: {_REASONS.get(placement.reason, placement.reason)}."
    yield ""
    yield f"  model       {request.model}, {ServiceTier(request.service_tier).label} tier, tenant {request.tenant}"
    estimated = " (estimated from its characters)" if request.prompt_chars is not None else ""
    yield f"  prompt      {request.prompt_tokens:,} tokens{estimated}"
    bound = "no bound by the client" if request.max_output_tokens is None else f"at most {request.max_output_tokens:,}"
    each = f", {request.sequences} answers" if request.sequences > 1 else ""
    yield (
        f"  answer      {bound}; expected {need.expected_tokens:,} tokens, room reserved for {need.forecast_tokens:,}{each}"
    )
    if need.ttft_objective_s == inf:
        yield "  objective   none: nobody waits for it"
    else:
        left_s = need.first_token_due_s - record.placed_s
        yield (
            f"  objective   first token within {time(need.ttft_objective_s)} of its arrival, then {time(need.tpot_objective_s)} a token"
        )
        yield f"  waited      {time(waited_s)} in the gateway's queue{again}; {time(left_s)} were left for the first token"
    if need.ttft_objective_s == inf:
        yield f"  waited      {time(waited_s)} in the gateway's queue{again}"


def _table(record: DecisionRecord, need: Need, candidates: Sequence[Candidate]) -> Iterator[str]:
    unit = "$ a thousand"
    head = ("", "tier", "first token", "a token", unit, "cached", "verdict")
    rows = [head, *(_row(record, need, one) for one in candidates[:_SHOWN])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head) - 1)]
    tested = len(candidates) + record.left_out
    yield f"Candidates: {tested} tested, {record.placement.considered} with room"
    for row in rows:
        cells = [
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=False))
        ]
        yield ("  " + "  ".join([*cells, row[-1]])).rstrip()
    if tested > _SHOWN:
        yield f"  ... and {tested - min(len(candidates), _SHOWN)} more"


def _row(record: DecisionRecord, need: Need, one: Candidate) -> tuple[str, ...]:
    offer, score = one.offer, one.score
    if score is None:
        return offer.replica, offer.cost_tier.value, "-", "-", "-", "-", f"no room: {_why_no_room(record, need, offer)}"
    usd = "paid anyway" if offer.usd_per_s == 0 else f"{score.usd * 1000:,.4f}"
    verdict = _verdict(record, need, score)
    return (
        offer.replica, offer.cost_tier.value, time(score.ttft_s), time(score.tpot_s), usd, f"{score.cached_tokens:,}", verdict,
    )  # fmt: skip


def _verdict(record: DecisionRecord, need: Need, score: Score) -> str:
    if score.replica == record.replica:
        return "chosen"
    if record.by_policy:
        return ""
    best, left_s = record.placement.score, need.first_token_due_s - record.placed_s
    if score.tpot_s > need.tpot_objective_s and best.tpot_s <= need.tpot_objective_s:
        return "too slow a token"
    if score.ttft_s > left_s and best.ttft_s <= left_s:
        return "too late"
    if record.placement.reason == "fallback":
        return "later" if score.ttft_s > best.ttft_s * EQUAL_RATIO else "as early, less room"
    if score.usd > best.usd * PRICE_RATIO:
        return "dearer" if best.usd == 0 else f"{score.usd / best.usd - 1:.0%} dearer"
    if score.usd < best.usd / PRICE_RATIO:
        return "cheaper, but not surely in time"
    if score.machine_s > best.machine_s * PRICE_RATIO:
        return f"as cheap, {score.machine_s / best.machine_s - 1:.0%} more of a machine"
    if score.machine_s < best.machine_s / PRICE_RATIO:
        return "less of a machine, but not surely in time"
    return "about as cheap, later" if score.ttft_s > best.ttft_s * EQUAL_RATIO else "as good, less room"


def _why_no_room(record: DecisionRecord, need: Need, offer: Offer) -> str:
    """The first of the tests it fails, in their order."""
    request = need.request
    if not offer.open:
        return "not ready"
    if offer.protected_for is not None and offer.protected_for != need.ticket:
        return "kept for a request that others had passed"
    if offer.replica in request.avoid:
        return "it had failed"
    if not could_ever_hold(request, offer, min_output_tokens=need.min_output_tokens):
        return "its context or its cost tier does not suit"
    if request.sequences > offer.free_sequences:
        return f"{max(offer.free_sequences, 0)} sequence slots free"
    if request.prompt_tokens - cached_on(need, offer) > offer.free_prefill_tokens:
        return f"may take {max(offer.free_prefill_tokens, 0):,} prompt tokens more before the others have their first"
    if request.service_tier is ServiceTier.BATCH and not offer.has_to_spare(request.prompt_tokens):
        return "what is left is kept for those who are watched"
    if blocks_needed(need, offer) > offer.free_blocks and offer.known_free_tokens is None:
        return f"{max(offer.free_blocks, 0):,} KV blocks free, {blocks_needed(need, offer):,} needed"
    if (without := score_on(record, replace(offer, window=None))) is not None and offer.window is not None:
        tokens = reserved_output(need, offer)
        if offer.window.closes:
            end_s = offer.window.surely_ended_s(record.placed_s, without.ttft_s, without.tpot_s, tokens)
            left_s = offer.window.ends_s - record.placed_s
            return (
                f"it goes in {time(max(left_s, 0.0))}, and {tokens:,} tokens may take {time(end_s - record.placed_s)}"
            )
        return f"it may have to go soon, and takes nothing that may run longer than {time(offer.window.longest_s)}"
    if (due_s := offer.binding_s(record.placed_s)) < inf:
        spare_s = max(due_s - record.placed_s, 0.0)
        return f"its streams can spare {time(spare_s)}, and prefill up to this one's end would cost them more"
    return "its KV cache would overflow, by the forecast"


def _formula(need: Need, one: Candidate, role: str) -> Iterator[str]:
    offer, score = one.offer, one.score
    if score is None:
        yield f"{offer.replica}, {role}: cannot be reckoned again from what was recorded"
        return
    yield f"{offer.replica}, {role}"
    yield from _first_token(need, offer, score)
    prompt = need.request.prompt_tokens
    kv_s = offer.kv_token_s * prompt
    yield f"  a token      {time(score.tpot_s)} = step of the batch with this one {time(score.tpot_s - kv_s)} + reading its prompt's KV {time(kv_s)}"
    yield from _cost(need, offer, score)
    room = (
        "unknown"
        if score.headroom_blocks is None
        else f"{score.headroom_blocks:,} KV blocks of {offer.block_size} tokens"
    )
    yield f"  room left    {room}"


def _first_token(need: Need, offer: Offer, score: Score) -> Iterator[str]:
    prompt, cached = need.request.prompt_tokens, score.cached_tokens
    new = prompt - cached
    steps = -(-new // offer.chunk_tokens)
    trusted = (
        f" (believed {need.cached_tokens.get(offer.replica, 0):,}, trusted to {offer.prefix_trust_ratio:.0%})"
        if cached
        else ""
    )
    wait_s = score.ttft_s - score.prefill_s
    why = (
        "prompts admitted before"
        if wait_s > offer.step_wait_s
        else "the step under way"
        if wait_s > 0
        else "nothing ahead"
    )
    weights_s, compute_s = steps * offer.weights_s, new * offer.token_s
    attention_s = offer.attention_s * new * (cached + new / 2)
    bound = "reading the weights" if weights_s > compute_s else f"{new:,} tokens of {offer.token_s * 1e6:.3g} us"
    yield f"  prompt       {prompt:,} - {cached:,} cached{trusted} = {new:,} tokens, in {steps} step{'s' if steps > 1 else ''} of up to {offer.chunk_tokens:,}"
    yield (f"  first token  {time(score.ttft_s)} = wait {time(wait_s)} ({why}) + prefill {time(score.prefill_s)}")
    yield (
        f"               prefill: {bound} {time(max(weights_s, compute_s))}, attention {time(attention_s)}, "
        f"the steps' overhead and everybody's decoding {time(steps * offer.chunk_s)}"
    )


def _cost(need: Need, offer: Offer, score: Score) -> Iterator[str]:
    tokens = need.expected_tokens * need.request.sequences
    step_s = offer.price_decode_s + offer.kv_token_s * need.request.prompt_tokens
    decode_s = tokens * step_s / offer.batch
    yield (
        f"  machine      {time(score.machine_s)} = prefill {time(score.machine_s - decode_s)} + "
        f"{tokens:,} tokens x {time(step_s)} / {offer.batch} that share a step"
    )
    if offer.usd_per_s == 0:
        yield (
            "  cost         nothing more: it is reserved and paid for anyway"
            if offer.cost_tier is CostTier.RESERVED
            else ("  cost         nothing: no price is configured (replicas[].cost)")
        )
        return
    risk = score.usd / (offer.usd_per_s * score.machine_s) - 1 if score.machine_s else 0.0
    more = f", {risk:.2%} added for the risk of a reclaim" if risk >= 0.00005 else ""
    yield f"  cost         {money(score.usd)} for a thousand such requests, at ${offer.usd_per_s * 3600:.2f} an hour{more}"


def _outcome(record: DecisionRecord) -> Iterator[str]:
    end = record.end()
    if end.outcome is None:
        seen = "no token yet" if end.first_token_s is None else f"{end.emitted_tokens:,} tokens so far"
        yield f"It runs: {seen}."
        return
    assert end.finished_s is not None
    yield f"It {end.outcome.value} after {time(end.finished_s - record.placed_s)} there, with {end.tokens:,} tokens."
    found = judged(record)
    if found:
        yield from _predictions(found)
    if end.first_token_s is None and not record.asked("streaming"):
        yield "  It was not streamed, so its first token was not seen."
    if end.prompt_tokens is not None and end.prompt_tokens != record.asked("prompt_tokens"):
        yield f"  The engine counted {end.prompt_tokens:,} prompt tokens, {record.asked('prompt_tokens'):,} were estimated."


def _predictions(found: Sequence[Judged]) -> Iterator[str]:
    rows = [("", "predicted", "actual", "difference", "without learning")]
    for one in found:
        show = time if one.signal in {Signal.TTFT, Signal.TPOT, Signal.FINISH} else _count
        difference = "-" if one.predicted <= 0 else f"{one.actual / one.predicted - 1:+.0%}"
        rows.append((_NAMES[one.signal], show(one.predicted), show(one.actual), difference, show(one.baseline)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  " + "  ".join(cells)


def _count(value: float) -> str:
    return "no limit" if value >= UNBOUNDED else f"{value:,.0f}"
