"""What a fleet would cost on demand: declared, its own price, its like's, or not known."""

from typing import Any

import pytest

from config.load import embedded_default
from config.prices import fleet_usd_per_hour, on_demand_usd_per_hour
from config.schema import ReplicaConfig


def replica(name: str, tier: str, usd: float, gpu: str = "A100-80G", count: int = 1, **cost: Any) -> ReplicaConfig:
    return ReplicaConfig.model_validate(
        {
            "name": name,
            "backend": "simulated",
            "models": ["m"],
            "gpu": {"type": gpu, "count": count},
            "cost": {"tier": tier, "usd_per_hour": usd, **cost},
        }
    )


def test_what_is_declared_counts_first():
    """Also of a machine that is on demand: it may have been a bargain."""
    fleet = [replica("a", "on_demand", 3.0, on_demand_usd_per_hour=4.0), replica("b", "spot", 1.0)]
    assert on_demand_usd_per_hour(fleet) == {"a": 4.0, "b": 4.0}


def test_a_machine_costs_what_its_like_costs_on_demand():
    """As many of the same GPUs; of several prices the dearest."""
    fleet = [
        replica("spot", "spot", 1.0),
        replica("cheap", "on_demand", 2.5),
        replica("dear", "on_demand", 3.0),
        replica("pair", "reserved", 4.0, count=2),
        replica("other", "spot", 1.0, gpu="H100-80G"),
    ]
    assert on_demand_usd_per_hour(fleet) == {"spot": 3.0, "cheap": 2.5, "dear": 3.0, "pair": None, "other": None}
    assert fleet_usd_per_hour(fleet) == (pytest.approx(11.5), None)


def test_gpus_of_no_name_are_not_alike():
    """Two machines of which nobody has said what they are; nor is a price of nothing one."""
    fleet = [replica("a", "on_demand", 3.0, gpu="unknown"), replica("b", "spot", 1.0, gpu="unknown")]
    assert on_demand_usd_per_hour(fleet) == {"a": 3.0, "b": None}
    assert on_demand_usd_per_hour([replica("a", "on_demand", 0.0)]) == {"a": None}


def test_the_embedded_fleet_shows_a_saving():
    """A newcomer's board has a figure for every machine."""
    usd, on_demand = fleet_usd_per_hour(embedded_default().replicas)
    assert on_demand is not None
    assert usd < on_demand
