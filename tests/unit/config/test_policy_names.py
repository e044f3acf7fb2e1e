"""`scheduling.policy` is one of the names that there are, or an error that names them."""

import pytest

from batching.policies import BASELINES
from config.checks import BASELINE_POLICIES, OWN_POLICY
from config.load import ConfigError, load
from config.schema import Scheduling

KNOWN = ", ".join((OWN_POLICY, *BASELINE_POLICIES))


def problems(policy: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(None, {"scheduling": {"policy": policy}}, {})
    return list(caught.value.problems)


def test_the_config_knows_every_baseline_and_no_other() -> None:
    """Config may not ask batching, so its list is held against the registry here."""
    assert list(BASELINE_POLICIES) == list(BASELINES)
    assert OWN_POLICY not in BASELINES


@pytest.mark.parametrize("policy", [OWN_POLICY, *BASELINES])
def test_every_known_name_is_taken(policy: str) -> None:
    """What the registry builds, the config accepts."""
    assert load(None, {"scheduling": {"policy": policy}}, {}).scheduling.policy == policy


def test_ours_is_the_default() -> None:
    """Nobody runs another router's rule without having asked for it."""
    assert Scheduling().policy == OWN_POLICY


@pytest.mark.parametrize(
    ("policy", "wrong"),
    [
        ("Round-Robin", f"'Round-Robin' is no policy; did you mean round_robin? there are {KNOWN}"),
        ("leastrequests", f"'leastrequests' is no policy; did you mean least_requests? there are {KNOWN}"),
        ("fifo", f"'fifo' is no policy; there are {KNOWN}"),
        ("", f"'' is no policy; there are {KNOWN}"),
        (3, "3 is not text; put it in quotes"),
    ],
)
def test_an_unknown_name_is_told_the_known_ones(policy: object, wrong: str) -> None:
    """The key path, what is wrong, the nearest name where there is one, and all that there are."""
    assert problems(policy) == [f"scheduling.policy: {wrong} (from the command line)"]
