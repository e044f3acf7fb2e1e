"""Decision records for tests: of a scheduler that has placed something, or of a whole simulated run."""

from pathlib import Path
from typing import Any

from batching.decision_record import DecisionRecord
from batching.decisions import Decisions
from batching.replica import Lifecycle, ReplicaProfile
from batching.request import Outcome, Request
from batching.scheduler import Scheduler
from batching.ticket import Lease, Placed
from config.schema import Queue, Scheduling
from tests.support.scheduling import profile


class Kept:
    """A scheduler with a ledger; `place` is one request's way in."""

    def __init__(self, *replicas: ReplicaProfile, decisions: Decisions | None = None, **options: Any) -> None:
        self.decisions = Decisions() if decisions is None else decisions
        self.scheduler = Scheduler(Scheduling(), Queue(), decisions=self.decisions, **options)
        for replica in replicas or (profile(),):
            self.scheduler.add_replica(replica, Lifecycle.READY, 0.0)

    def place(self, request: Request, now: float = 0.0) -> Lease:
        self.scheduler.submit(request, now)
        (decision,) = self.scheduler.advance(now)
        assert isinstance(decision, Placed)
        return decision.lease

    def answer(
        self, lease: Lease, *, first_s: float, last_s: float, tokens: int, cached_tokens: int | None = 0
    ) -> None:
        """The first token, the others, the end."""
        self.scheduler.on_first_token(lease.id, first_s)
        self.scheduler.on_tokens(lease.id, tokens, last_s)
        self.scheduler.finish(
            lease.id,
            last_s,
            outcome=Outcome.COMPLETED,
            prompt_tokens=lease.request.prompt_tokens,
            cached_tokens=cached_tokens,
            output_tokens=tokens,
        )

    @property
    def last(self) -> DecisionRecord:
        return self.decisions.recent(limit=1)[0]


def prefix_trace(folder: Path, requests: int = 300) -> Path:
    """Prompts in families, of every tier, arriving faster than a small fleet likes."""
    tiers = ("default", "priority", "flex", "batch")
    rows = [
        f'{{"timestamp": {n * 40}, "input_length": {512 * (2 + n % 5)}, "output_length": {20 + n * 37 % 200}, '
        f'"hash_ids": {[n % 7 * 100 + k for k in range(2 + n % 5)]}, "tenant": "t{n % 3}", "service_tier": "{tiers[n % 4]}"}}'
        for n in range(requests)
    ]
    path = folder / "trace.jsonl"
    path.write_text("\n".join(rows) + "\n")
    return path


def fleet_file(folder: Path, replicas: int = 4, name: str = "fleet.yaml") -> Path:
    """Of three kinds and tiers, with room for little."""
    kinds = (("H100-80G", "reserved", 2.5), ("A100-80G", "on_demand", 3.0), ("A100-80G", "spot", 1.2))
    rows = [
        f"  - {{name: r{n:02}, backend: simulated, models: [m], gpu: {{type: {kinds[n % 3][0]}}}, "
        f"cost: {{tier: {kinds[n % 3][1]}, usd_per_hour: {kinds[n % 3][2]}}}, capacity: {{kv_blocks: 1200, max_num_seqs: 16}}}}"
        for n in range(replicas)
    ]
    path = folder / name
    path.write_text("replicas:\n" + "\n".join(rows) + "\n")
    return path
