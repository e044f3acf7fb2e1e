"""All dashboards by their files' names, as the JSON that is committed."""

import json

from metrics.dashboards import cost, fleet, internals, latency, one_model
from metrics.dashboards.dashboard import Dashboard


def dashboards() -> dict[str, Dashboard]:
    """Raises UnknownName where the catalog has no such metric or label."""
    made = (fleet, latency, cost, one_model, internals)
    return {f"{module.__name__.rsplit('.', 1)[1].replace('_', '-')}.json": module.dashboard() for module in made}


def rendered() -> dict[str, str]:
    return {
        name: json.dumps(made.document(), indent=2, ensure_ascii=False) + "\n" for name, made in dashboards().items()
    }
