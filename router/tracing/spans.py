"""From what was noted of a request to its spans: one tree, root first, in OpenTelemetry's names. Pure.

Names follow the semantic conventions for generative AI where they have one; what they have none for is `penstock.*` (docs/tracing.md).
No word of a prompt or an answer, unless `Trace.kept` says that they are asked for.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, NamedTuple

from batching.request import Outcome
from batching.ticket import Placed
from router.exchange import Exchange
from router.openai.journal import Mode
from router.tracing.content import prompt_of
from router.tracing.record import Trace, Try

SERVER, CLIENT, INTERNAL = "server", "client", "internal"
Value = str | bool | int | float | tuple[str, ...]
Attributes = dict[str, Value]

_OPERATIONS: Final = {"chat": "chat", "completions": "text_completion", "embeddings": "embeddings"}
_ASKED: Final = (
    ("temperature", "gen_ai.request.temperature"),
    ("top_p", "gen_ai.request.top_p"),
    ("top_k", "gen_ai.request.top_k"),
    ("frequency_penalty", "gen_ai.request.frequency_penalty"),
    ("presence_penalty", "gen_ai.request.presence_penalty"),
    ("seed", "gen_ai.request.seed"),
)
# Only what clients send to name a conversation; other affinity keys may name a person.
_CONVERSATION: Final = ("x-session-id", "x-openwebui-chat-id", "x-claude-code-session-id", "session-id", "thread-id")
_MAX_WORD_CHARS: Final = 256
# An attempt that ended so has failed nobody: it was given up for a better one, or with its client.
_GIVEN_UP: Final = frozenset({"ok", "cancelled", "hedged", "moved", "lapsed"})


class Place(NamedTuple):
    """Where a replica's engine is."""

    provider: str  # gen_ai.provider.name
    host: str | None
    port: int | None


class Event(NamedTuple):
    name: str
    at_s: float
    attributes: Attributes


class Link(NamedTuple):
    """To another span of the same trace."""

    span_id: int
    attributes: Attributes


@dataclass(slots=True, eq=False)
class Span:
    """Seconds on the loop's clock; `failed`: why, in a word; None: it has not."""

    name: str
    kind: str
    span_id: int
    parent_id: int | None
    start_s: float
    end_s: float
    attributes: Attributes
    failed: str | None = None
    events: list[Event] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)


def spans_of(exchange: Exchange, places: Mapping[str, Place], pseudonym: Callable[[str], str]) -> list[Span]:
    """Of a request that has ended. `places`: by replica; `pseudonym`: of a tenant."""
    trace, timeline = exchange.trace, exchange.timeline
    assert trace is not None
    assert timeline.finished_s is not None
    end_s = timeline.finished_s
    root = Span(
        name=_name(exchange),
        kind=SERVER,
        span_id=trace.root_id,
        parent_id=trace.parent_id,
        start_s=exchange.inbound.received_s,
        end_s=end_s,
        attributes=_request_attributes(exchange, trace, places, pseudonym),
        failed=_failure(exchange),
        events=_events(exchange, trace.tries),
    )
    return [root, *_queue(exchange, trace, end_s), *_places(trace), *_tries(exchange, trace, places, end_s)]


def _name(exchange: Exchange) -> str:
    """The model as metrics know it: a span's name must not be whatever a client makes up."""
    operation = _OPERATIONS[exchange.endpoint]
    return operation if exchange.labels is None else f"{operation} {exchange.labels[0]}"


def _request_attributes(
    exchange: Exchange, trace: Trace, places: Mapping[str, Place], pseudonym: Callable[[str], str]
) -> Attributes:
    found: Attributes = {
        "gen_ai.operation.name": _OPERATIONS[exchange.endpoint],
        "http.request.method": "POST",
        "http.route": exchange.inbound.path,
        "penstock.request.id": exchange.inbound.request_id,
        "penstock.outcome": exchange.outcome.value,
        "penstock.attempts": exchange.attempts,
        "penstock.moves": exchange.move.count,
    }
    _add(found, "http.response.status_code", _status(exchange))
    _add(found, "error.type", _error_type(exchange))
    _add(found, "penstock.usd", exchange.usd)
    if exchange.placed is not None:
        placement = exchange.placed.placement
        found["penstock.replica"], found["penstock.cost_tier"] = placement.replica, placement.cost_tier.value
        if placement.replica in places:
            found["gen_ai.provider.name"] = places[placement.replica].provider
    if exchange.spec is None or exchange.request is None:
        return found
    spec = exchange.spec
    found["gen_ai.request.model"] = spec.model
    found["gen_ai.request.stream"] = spec.stream and not spec.collected
    found["penstock.service_tier"] = spec.service_tier.label
    found["penstock.tenant"] = pseudonym(exchange.request.tenant)
    found["penstock.queue.seconds"] = exchange.queue_s
    _add(found, "gen_ai.request.max_tokens", spec.max_output_tokens)
    if spec.n != 1:
        found["gen_ai.request.choice.count"] = spec.n
    for name, attribute in _ASKED:
        if isinstance(value := trace.fields.get(name), int | float):
            found[attribute] = value
    if isinstance(tier := trace.fields.get("service_tier"), str):
        found["openai.request.service_tier"] = tier
    headers = exchange.inbound.headers
    _add(found, "gen_ai.conversation.id", next((headers[name] for name in _CONVERSATION if headers.get(name)), None))
    _answer_attributes(found, exchange, trace)
    return found


def _answer_attributes(found: Attributes, exchange: Exchange, trace: Trace) -> None:
    usage, spec, timeline = exchange.usage, exchange.spec, exchange.timeline
    assert spec is not None
    _add(found, "gen_ai.response.model", exchange.answer_model)
    if exchange.finish_reasons:
        found["gen_ai.response.finish_reasons"] = tuple(reason[:_MAX_WORD_CHARS] for reason in exchange.finish_reasons)
    if usage is not None:
        _add(found, "gen_ai.usage.input_tokens", usage.prompt_tokens)
        _add(found, "gen_ai.usage.output_tokens", usage.completion_tokens)
        _add(found, "gen_ai.usage.cache_read.input_tokens", usage.cached_tokens)
        _add(found, "gen_ai.usage.reasoning.output_tokens", usage.reasoning_tokens)
    if spec.stream and not spec.collected:
        _add(found, "gen_ai.response.time_to_first_chunk", timeline.ttft_s)
    if trace.kept is not None:
        _add(found, "gen_ai.input.messages", prompt_of(trace.fields, trace.kept.limit))
        document = None if exchange.document is None else exchange.document.body
        _add(found, "gen_ai.output.messages", trace.kept.answer(choices=spec.n, document=document))


def _status(exchange: Exchange) -> int | None:
    """As the client got it; None: it was gone by then."""
    if exchange.outcome is not Outcome.CANCELLED:
        return exchange.status
    return 200 if exchange.client.started else None


def _error_type(exchange: Exchange) -> str | None:
    if exchange.outcome is Outcome.CANCELLED:
        return "client_closed"
    return None if exchange.error is None else exchange.error.label


def _failure(exchange: Exchange) -> str | None:
    """A server has failed where the status says so, or an answer that had begun did not end; not where a client was wrong, or left."""
    error = exchange.error
    if error is None or (exchange.status != 200 and error.status < 500):
        return None
    return error.label


def _events(exchange: Exchange, tries: list[Try]) -> list[Event]:
    """On the root: what a client saw happen."""
    found = []
    first_s, spec = exchange.timeline.first_token_s, exchange.spec
    spoken = [attempt.spoke_s for attempt in tries if attempt.spoke_s is not None]
    if first_s is not None and spec is not None and spec.stream:
        found.append(Event("first_token", min([first_s, *spoken]), {}))
    for before, after in pairwise(tries):
        if before.outcome in {"ok", "hedged"} or after.began_s < (before.ended_s or after.began_s):
            continue
        about: Attributes = {
            "penstock.from": before.lease.replica,
            "penstock.to": after.lease.replica,
            "penstock.why": before.outcome,
            "penstock.continuation": after.mode.value,
        }
        # Where something was said it is the same answer that goes on; else it is asked for again.
        found.append(Event("retry" if after.mode is Mode.NONE else "move", after.began_s, about))
    found += [
        Event("seam", attempt.spoke_s, {"penstock.gap_seconds": attempt.gap_s, "penstock.to": attempt.lease.replica})
        for attempt in tries
        if attempt.gap_s is not None and attempt.spoke_s is not None
    ]
    return sorted(found, key=lambda event: event.at_s)


def _queue(exchange: Exchange, trace: Trace, end_s: float) -> list[Span]:
    """Each wait for a place; the last of them may have been in vain."""
    if exchange.request is None:
        return []
    tier = exchange.request.service_tier.label
    waits = [(wait.since_s, wait.until_s, wait.outcome) for wait in trace.waits]
    since_s = exchange.request.arrived_s
    if trace.tries:
        since_s = trace.tries[-1].ended_s or end_s
    if exchange.phase == "queued" and not (waits and waits[-1][1] >= since_s):
        waits.append((since_s, end_s, _left(exchange)))
    found = []
    for number, (start_s, until_s, outcome) in enumerate(waits):
        about: Attributes = {"penstock.service_tier": tier, "penstock.queue.outcome": outcome}
        if number == 0:
            about["penstock.queue.depth"] = trace.depth
        else:
            about["penstock.queue.again"] = True
        failed = None if outcome in {"placed", "cancelled"} else _failure(exchange)
        found.append(Span("queue", INTERNAL, trace.new_id(), trace.root_id, start_s, until_s, about, failed))
    return found


def _left(exchange: Exchange) -> str:
    if exchange.outcome is Outcome.CANCELLED:
        return "cancelled"
    refused = exchange.outcome in {Outcome.REJECTED, Outcome.EVICTED}
    return exchange.error.label if refused and exchange.error is not None else "no_place"


def _places(trace: Trace) -> list[Span]:
    return [
        Span(
            name="place",
            kind=INTERNAL,
            span_id=trace.new_id(),
            parent_id=trace.root_id,
            start_s=min(placed.decided_s or heard_s, heard_s),
            end_s=heard_s,
            attributes=_placement(placed),
        )
        for placed, heard_s in trace.placements.values()
    ]


def _placement(placed: Placed) -> Attributes:
    placement = placed.placement
    score = placement.score
    found: Attributes = {
        "penstock.replica": placement.replica,
        "penstock.cost_tier": placement.cost_tier.value,
        "penstock.placement.reason": placement.reason,
        "penstock.placement.considered": placement.considered,
        "penstock.placement.usd": score.usd,
        "penstock.placement.ttft_seconds": score.ttft_s,
        "penstock.placement.tpot_seconds": score.tpot_s,
        "penstock.placement.cached_tokens": score.cached_tokens,
        "penstock.placement.meets_objective": score.meets_objective,
        "penstock.placement.formula": placement.explain(),
    }
    _add(found, "penstock.placement.headroom_blocks", score.headroom_blocks)
    other = next((one for one in placement.candidates if one.replica != placement.replica), None)
    if other is not None:
        found["penstock.placement.runner_up"] = other.replica
        found["penstock.placement.runner_up.usd"] = other.usd
        found["penstock.placement.runner_up.ttft_seconds"] = other.ttft_s
    if placed.hedges is not None:
        found["penstock.hedge"] = True
    return found


def _tries(exchange: Exchange, trace: Trace, places: Mapping[str, Place], end_s: float) -> list[Span]:
    found: list[Span] = []
    for number, attempt in enumerate(trace.tries, 1):
        ended_s = end_s if attempt.ended_s is None else attempt.ended_s
        placed = trace.placements.get(attempt.lease.id)
        hedge = placed is not None and placed[0].hedges is not None
        span = Span(
            name=_name(exchange),
            kind=CLIENT,
            span_id=attempt.span_id,
            parent_id=trace.root_id,
            start_s=attempt.began_s,
            end_s=ended_s,
            attributes=_attempt(exchange, attempt, number, places.get(attempt.lease.replica)),
            failed=None if attempt.outcome in _GIVEN_UP else attempt.outcome,
        )
        if hedge:
            span.attributes["penstock.hedge"] = True
        if number > 1:
            why = "hedges" if hedge else "repeats" if attempt.mode is Mode.NONE else "continues"
            span.links.append(Link(trace.tries[number - 2].span_id, {"penstock.link": why}))
        found.append(span)
        if attempt.spoke_s is not None:
            span.events.append(Event("first_token", attempt.spoke_s, {}))
            last_s = exchange.timeline.last_token_s if number == len(trace.tries) else None
            until_s = ended_s if last_s is None else min(ended_s, last_s)
            found.append(
                Span(
                    "relay", INTERNAL, trace.new_id(), span.span_id, attempt.spoke_s, max(attempt.spoke_s, until_s), {}
                )
            )
    return found


def _attempt(exchange: Exchange, attempt: Try, number: int, place: Place | None) -> Attributes:
    found: Attributes = {
        "gen_ai.operation.name": _OPERATIONS[exchange.endpoint],
        "penstock.replica": attempt.lease.replica,
        "penstock.attempt.number": number,
        "penstock.attempt.outcome": attempt.outcome,
        "penstock.continuation": attempt.mode.value,
    }
    if exchange.spec is not None:
        found["gen_ai.request.model"] = exchange.spec.model
    if place is not None:
        found["gen_ai.provider.name"] = place.provider
        _add(found, "server.address", place.host)
        _add(found, "server.port", place.port)
    if attempt.spoke_s is not None:
        found["gen_ai.response.time_to_first_chunk"] = attempt.spoke_s - attempt.began_s
    if attempt.outcome not in _GIVEN_UP:
        found["error.type"] = attempt.outcome
    return found


def _add(found: Attributes, name: str, value: Any) -> None:
    if value is not None:
        found[name] = value[:_MAX_WORD_CHARS] if isinstance(value, str) and not name.endswith(".messages") else value
