"""The recorded series of metrics/rules: their names and the labels that each keeps, read from the files themselves."""

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Final

import yaml

RULES: Final = Path(__file__).resolve().parent


@cache
def _recorded() -> Mapping[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for path in sorted(RULES.glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                if "record" in rule:
                    found[rule["record"]] = _labels(rule["record"])
    return found


def recorded_labels(name: str) -> tuple[str, ...]:
    """By Prometheus' convention the first part of the name tells them: `job_model_service_tier:...`. Raises ValueError."""
    found = _recorded()
    if name not in found:
        raise ValueError(f"no rule in metrics/rules records {name!r}; there are {', '.join(sorted(found))}")
    return found[name]


def _labels(name: str) -> tuple[str, ...]:
    level = name.split(":", 1)[0]
    return tuple(re.findall(r"job|model|service_tier|cost_tier|replica", level))
