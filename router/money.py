"""Writes what machines have cost into counters - to whom it was charged, what was idle - and what they would cost on demand.

Decides nothing about money: `batching.meter` splits it. Asked before a scrape, so that the dollars of a stream come while it runs;
each dollar is taken from the till once.
"""

from collections.abc import Iterable

from batching.scheduler import Scheduler
from config.prices import on_demand_usd_per_hour
from config.schema import ReplicaConfig
from metrics.catalog import Metrics
from metrics.handles import Children

ANONYMOUS = (
    "anonymous"  # everybody, while keys are off: who a call belongs to is read where its body is, in CallSpec.tenant
)


class Money:
    """The till's one taker."""

    def __init__(self, metrics: Metrics, scheduler: Scheduler) -> None:
        self._metrics = metrics
        self._till = scheduler.till
        self._charged = Children(metrics.cost_units_total.labels)
        self._machines = Children(metrics.replica_cost_units_total.labels)

    def forget(self, replica: str) -> None:
        """Its series are no more: none of them is to be held on to."""
        self._charged.forget(replica)
        self._machines.forget(replica)

    def refresh(self, now: float, replicas: Iterable[ReplicaConfig]) -> None:
        """`replicas`: as they are configured now."""
        for spent in self._till.take(now):
            machine = spent.machine
            labels = (machine.replica, machine.gpu, machine.cost_tier.value)
            for account, usd in spent.accounts.items():
                if usd > 0.0:
                    self._charged.get(account.model, account.service_tier, *labels, account.tenant_class).inc(usd)
            for state, usd in (("busy", spent.busy_usd), ("idle", spent.idle_usd)):
                if usd > 0.0:
                    self._machines.get(*labels, state).inc(usd)
        self._prices(list(replicas))

    def _prices(self, replicas: list[ReplicaConfig]) -> None:
        gauge = self._metrics.replica_on_demand_usd_per_hour
        gauge.clear()
        on_demand = on_demand_usd_per_hour(replicas)
        for replica in replicas:
            if (usd := on_demand[replica.name]) is not None:
                gauge.labels(replica.name, replica.gpu.type, replica.cost.tier.value).set(usd)
