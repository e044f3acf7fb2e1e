"""What an answer that was completed teaches: of the predictions that were made of it, of its model, and of its replica."""

from batching.audit import judge
from batching.estimators import Estimators
from batching.ledger import LeaseRecord
from batching.live_replica import LiveReplica


def learn(
    record: LeaseRecord,
    live: LiveReplica,
    estimators: Estimators,
    now: float,
    *,
    prompt: int | None,
    cached: int | None,
    output: int,
) -> None:
    """`live`: where it was answered. Tokens, as its engine told or as we counted; `output` of all sequences together."""
    request = record.lease.request
    per_sequence = -(-output // request.sequences)
    if record.forecast is not None:
        found = judge(
            record.forecast,
            placed_s=record.placed_s,
            first_token_s=record.first_token_s,
            last_token_s=record.last_token_s,
            finished_s=now,
            tokens=per_sequence,
            cached_tokens=cached,
        )
        live.audit.observe(found)
    if request.resumes:
        return  # half an answer says nothing about whole ones
    if prompt is not None and request.prompt_chars is not None:
        estimators.chars.learn(request.model, chars=request.prompt_chars, tokens=prompt)
    if cached is not None:
        live.speed.learn_cached(reported_tokens=cached, expected_tokens=record.believed_cached_tokens)
    estimators.outputs.learn(request.model, request.max_output_tokens, per_sequence)
