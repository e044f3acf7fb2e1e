"""Whatever is set before a scrape and not while requests are served: gauges, dollars, the process's own figures, the loop's lag."""

from batching.scheduler import Scheduler
from config.schema import Config
from metrics.catalog import Metrics
from metrics.process import ProcessFigures
from router.body_budget import BodyBudget
from router.gauges import Gauges
from router.lag import Lag
from router.model_labels import ModelLabels
from router.money import Money


class Figures:
    """`watch` in the gateway's task group; `refresh` before a scrape."""

    def __init__(self, metrics: Metrics, scheduler: Scheduler, models: ModelLabels, bodies: BodyBudget) -> None:
        self._metrics = metrics
        self._gauges = Gauges(metrics, scheduler, models, bodies)
        self._money = Money(metrics, scheduler)
        self._process = ProcessFigures(metrics)
        self._lag = Lag()

    async def watch(self) -> None:
        """How late the loop wakes, until cancelled."""
        await self._lag.watch()

    def forget(self, replica: str) -> None:
        """Its series are no more."""
        self._money.forget(replica)

    def refresh(self, now: float, config: Config, *, alone: bool) -> None:
        """`alone`: there are no other workers."""
        self._gauges.refresh(now, config.queue.max_requests, alone=alone)
        self._metrics.event_loop_lag_seconds.set(self._lag.worst_s)
        self._process.refresh()
        self._money.refresh(now, config.replicas)
