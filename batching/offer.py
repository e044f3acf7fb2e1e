"""What one replica offers a new request: budgets left and the coefficients of its time and price.

A flat snapshot that the fleet rewrites whenever the replica changes, so that a policy is a function of (need, offers, now) and
scoring a hundred replicas stays a tight loop. Decides nothing; only `LiveReplica` writes it, but for `wanted_due_s`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from batching.blocks import DEFAULT_BLOCK_SIZE, UNBOUNDED
from batching.request import ReplicaId
from batching.window import Window
from config.schema import CostTier

_NEVER: Final = float("inf")
SPARED_RATIO: Final = 0.1  # of the KV cache: batch leaves it to those who are watched


@dataclass(slots=True, eq=False, kw_only=True)
class Offer:
    """Seconds, dollars, tokens and blocks; `UNBOUNDED` where no limit is known. Learned factors are multiplied in."""

    replica: ReplicaId
    cost_tier: CostTier = CostTier.ON_DEMAND
    usd_per_s: float = 0.0  # of a second of the whole machine; 0 for reserved: it is paid for anyway
    open: bool = False  # ready for new work
    protected_for: int | None = None  # the one ticket that may still be placed here
    window: Window | None = None  # within which work must end; None: it may take as long as it likes
    epoch: int = 0  # the fleet's count when room here last grew

    empty: bool = True  # none of our leases
    free_sequences: int = 0
    spared_sequences: int = 0  # of them, that batch leaves to those who are watched
    free_prefill_tokens: int = UNBOUNDED
    prefill_tokens: int = 0  # admitted before, still to be prefilled
    free_blocks: int = UNBOUNDED  # every lease at the high quantile of its forecast
    forecast: Callable[[], tuple[float, ...] | None] | None = None  # makes `free_tokens`; None: made, or not to be had
    known_free_tokens: tuple[float, ...] | None = None
    headroom_ratio: float = 1.0  # of the KV blocks, else of the sequences, that are free
    max_model_len: int = UNBOUNDED
    longest_tokens: int = UNBOUNDED  # of one sequence: its context or the whole KV cache, whichever ends first
    block_size: int = DEFAULT_BLOCK_SIZE

    # When: what was admitted before is prefilled at `prefill_end_s`, but never sooner than in `prefill_rest_s`.
    prefill_end_s: float = 0.0
    prefill_rest_s: float = 0.0
    step_wait_s: float = 0.0  # for the step under way when nothing is being prefilled
    chunk_tokens: int = 2048  # prompt tokens an engine step takes
    token_s: float = 0.0
    weights_s: float = 0.0
    attention_s: float = 0.0
    chunk_s: float = 0.0  # of each step, whatever prompt is in it: overhead and everybody's decoding

    # How its streams fare: none may be held up beyond `due_s` by prefill.
    decode_s: float = 0.0  # a decode step with one more sequence, its own KV aside
    kv_token_s: float = 0.0
    due_s: float = _NEVER  # when the first of the streams falls behind its objective if it gets no token
    coming_due_s: float = _NEVER  # the same of the first that is still to begin; it binds until then
    pace_s: float = 0.0  # that a stream may take for a token
    held_up_ratio: float = 1.0  # of the prefill admitted before: each of its steps gives every stream one token
    wanted_due_s: float = _NEVER  # written when asked: the least `due_s` at which something that was tried would fit

    price_decode_s: float = 0.0  # as `decode_s` without learned factors
    price_factor: float = 1.0  # what makes `token_s` and `attention_s` those of the GPU type again
    batch: int = 32  # sequences a step is shared by when the replica is in use
    prefix_trust_ratio: float = 1.0  # learned: cached tokens reported over expected

    told: tuple[Any, ...] | None = None  # its values as the decision ledger has them; None: something was written since

    @property
    def has_slots(self) -> bool:
        """Whether any request at all is within its sequences and its prefill."""
        return self.open and (self.empty or (self.free_sequences > 0 and self.free_prefill_tokens > 0))

    def has_room(self, now: float) -> bool:
        """Whether anything at all could be placed here."""
        if self.protected_for is not None or not self.open:
            return False
        if self.empty:
            return True
        if self.free_sequences <= 0 or self.free_prefill_tokens <= 0:
            return False
        due_s, coming_s = self.due_s, self.coming_due_s  # as `bears` of nothing more
        if now <= coming_s < due_s:
            due_s = coming_s
        if due_s == _NEVER:
            return True
        ahead_s, rest_s = self.prefill_end_s - now, self.prefill_rest_s
        wanted_s = now + self.held_up_ratio * (ahead_s if ahead_s >= rest_s else rest_s)
        if wanted_s <= due_s:
            return True
        self.want(wanted_s)
        return False

    def has_to_spare(self, new_tokens: int) -> bool:
        """For work that nobody watches: enough stays free for those who are watched, who may come at any moment.

        A tenth of KV cache and sequences, and no prompt waits behind more than one engine step of such work.
        """
        return (
            self.headroom_ratio >= SPARED_RATIO
            and self.free_sequences > self.spared_sequences
            and self.prefill_tokens + new_tokens <= max(self.chunk_tokens, new_tokens)
        )

    def bears(self, now: float, more_s: float, steps: int, lent_s: float = 0.0) -> bool:
        """Whether its streams can be held up by `more_s` of prefill in `steps` on top of what is being prefilled.

        If not, it is noted what `due_s` would have to be, so that the fleet can tell when it is worth asking again.
        """
        due_s, coming_s = self.due_s, self.coming_due_s
        if now <= coming_s < due_s:  # as `binding_s`
            due_s = coming_s
        if due_s == _NEVER:
            return True
        wanted_s = self.held_up_until(now, more_s, steps) - lent_s
        if wanted_s <= due_s:
            return True
        self.want(wanted_s)
        return False

    def binding_s(self, now: float) -> float:
        """Until when its streams can be held up."""
        return self.due_s if now > self.coming_due_s else min(self.due_s, self.coming_due_s)

    def ahead_s(self, now: float) -> float:
        """Seconds until what was admitted before is prefilled."""
        return max(self.prefill_end_s - now, self.prefill_rest_s)

    def held_up_until(self, now: float, more_s: float, steps: int) -> float:
        """As far as its streams are concerned, when what is being prefilled and `more_s` in `steps` of it will be over.

        Each step gives every stream a token, so only what exceeds the objective holds them up.
        """
        return now + self.held_up_ratio * self.ahead_s(now) + max(0.0, more_s - steps * self.pace_s)

    def want(self, due_s: float) -> None:
        """Something was refused that fits once its streams are due no sooner."""
        self.wanted_due_s = min(self.wanted_due_s, due_s)

    def free_tokens(self) -> tuple[float, ...] | None:
        """Tokens free at each horizon of the forecast of the sum (kv_forecast); None: there is none. Made when first asked for."""
        if self.forecast is not None:
            self.known_free_tokens = self.forecast()
            self.forecast = self.told = None
        return self.known_free_tokens
