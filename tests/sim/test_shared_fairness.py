"""Tenants that want all they can get, at several gateways or workers of one fleet, in virtual time: who spreads wins nothing by it."""

import pytest

from tests.support.crowded_gateways import Crowded, Demand, crowd

ROOM = 32  # sequences of two replicas
WARM_S = 8.0  # what all were given at once, before anybody had heard of anything, is made up for by then
SECONDS = 24.0
FEW_S = 12.0  # where the error is large


def spread(gateways: int) -> list[Demand]:
    """One tenant has clients at every gateway, each other tenant only at its own; all have more than there is room for."""
    each = 3 * ROOM // gateways
    return [
        Demand("greedy", dict.fromkeys(range(gateways), each)),
        *(Demand(f"light{gateway}", {gateway: each}) for gateway in range(gateways)),
    ]


def errors(found: Crowded, demands: list[Demand], until_s: float = SECONDS) -> dict[str, float]:
    """How far each is from its part by weight, as a ratio of that."""
    total, weights = found.total(WARM_S, until_s), sum(demand.weight for demand in demands)
    return {d.tenant: found.between(d.tenant, WARM_S, until_s) * weights / (total * d.weight) - 1 for d in demands}


@pytest.mark.parametrize(
    "gateways", [pytest.param(1, marks=pytest.mark.bars), 2, pytest.param(4, marks=pytest.mark.bars), 8]
)
def test_who_spreads_over_gateways_gets_its_part(gateways: int):
    """Whatever their number, all tenants are served alike within 5 %."""
    demands = spread(gateways)
    found = crowd(demands, gateways=gateways, seconds=SECONDS)
    assert found.failed == 0
    assert max(map(abs, errors(found, demands).values())) <= 0.05, errors(found, demands)


def test_who_spreads_would_win_otherwise():
    """Gateways that do not listen serve it as much as all the others together: the test above can fail."""
    demands = spread(4)
    found = crowd(demands, gateways=4, seconds=FEW_S, deaf=True)
    assert errors(found, demands, FEW_S)["greedy"] > 1.0


def test_who_spreads_over_workers_gets_its_part():
    """Two workers tell each other over the supervisor's lines."""
    demands = spread(2)
    found = crowd(demands, workers=2, seconds=SECONDS)
    assert found.failed == 0
    assert max(map(abs, errors(found, demands).values())) <= 0.05, errors(found, demands)


def test_who_spreads_over_workers_would_win_otherwise():
    """Workers that do not listen serve it half of everything, not a third."""
    demands = spread(2)
    found = crowd(demands, workers=2, seconds=FEW_S, deaf=True)
    assert errors(found, demands, FEW_S)["greedy"] > 0.4


def test_who_fills_a_gateway_alone_gets_its_part():
    """Three tenants share the other gateway: it has a quarter as they have, but for a request on each replica, and not half of everything."""
    demands = [Demand("greedy", {0: 3 * ROOM}), *(Demand(f"light{number}", {1: ROOM}) for number in range(3))]
    found = crowd(demands, gateways=2, seconds=SECONDS)
    assert found.failed == 0
    assert errors(found, demands)["greedy"] <= 0.3, errors(found, demands)
