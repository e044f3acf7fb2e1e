"""What `/readyz` says: whether the gateway can accept work, also by queueing it, and why not (pure over the watched fleet)."""

from collections.abc import Iterable
from dataclasses import dataclass

from batching.replica import Lifecycle
from router.watched import Watched


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """The verdict and, for each replica and model that is not as configured, one sentence."""

    ready: bool
    problems: tuple[str, ...]
    replicas: dict[str, str]

    def document(self) -> dict[str, object]:
        return {"status": "ready" if self.ready else "not_ready", "problems": self.problems, "replicas": self.replicas}


def readiness(
    watched: Iterable[Watched], *, draining: bool, no_share: str | None = None, no_keys: str | None = None
) -> Readiness:
    """Ready unless draining, or a configured model was never served by any replica (a typo, a wrong port), or `no_share`, or `no_keys`."""
    replicas = list(watched)
    served = {model for replica in replicas for model in replica.models_seen}
    configured = {spec.name for replica in replicas for spec in replica.config.models}
    problems = [f"model {model!r} has never been served by any replica" for model in sorted(configured - served)]
    if not served:
        problems.append("no replica has served any model yet")
    problems += [why for why in (no_share, no_keys) if why is not None]
    blocking = bool(problems)
    if draining:
        problems.insert(0, "draining: this gateway is shutting down")
    problems += [
        f"replica {r.config.name} is {r.lifecycle}: {r.why}" for r in replicas if r.lifecycle is not Lifecycle.READY
    ]
    return Readiness(
        ready=not blocking and not draining,
        problems=tuple(problems),
        replicas={r.config.name: r.lifecycle.value for r in replicas},
    )
