"""How peers are chosen, installed and started, without installing any."""

import re
from pathlib import Path

import pytest

from benchmarks.overhead.install import Debian, NotInstalledError, Nowhere, Venv
from benchmarks.overhead.peers import PEERS, Peer, Setup, selected
from benchmarks.overhead.scenarios import SCENARIOS
from benchmarks.overhead.scenarios import selected as selected_scenarios
from benchmarks.overhead.targets import COMPILED, OURS, contestants, penstock

STARTED = [peer for peer in PEERS if not isinstance(peer.install, Nowhere)]


def setup(folder: Path) -> Setup:
    return Setup(port=20001, spare_port=20002, engines=(20003, 20004), model="bench", folder=folder, workers=1)


@pytest.mark.parametrize("peer", STARTED, ids=lambda peer: peer.name)
def test_every_peer_serves_on_its_port_before_both_engines(peer: Peer, tmp_path: Path):
    """Command and configuration name the port and both engines."""
    target = peer.target(("program",), setup(tmp_path))
    said = " ".join(target.command) + "".join(file.read_text() for file in tmp_path.iterdir())
    assert (target.name, target.port) == (peer.name, 20001)
    assert [port for port in ("20001", "20003", "20004") if port not in said] == []


def test_ours_serves_on_its_port_before_both_engines(tmp_path: Path):
    """Our own configuration, too."""
    target = penstock(setup(tmp_path))
    said = (tmp_path / "penstock.yaml").read_text()
    assert (target.name, target.port) == (OURS, 20001)
    assert [port for port in ("20001", "20003", "20004") if port not in said] == []


def test_a_compiled_one_is_started_by_its_own_python(tmp_path: Path):
    """Under its own name, and never with the checkout's modules on its path."""
    found, _ = contestants([], tmp_path, install=False, compiled=Path("/there/python"))
    assert [one.name for one in found] == ["direct", OURS, COMPILED]
    target = found[-1].target
    assert target is not None
    made = target(setup(tmp_path))
    assert (made.name, made.command[:2]) == (COMPILED, ("/there/python", "-P"))


def test_versions_are_pinned():
    """What comes from PyPI has one version."""
    requirements = [peer.install.requirement for peer in PEERS if isinstance(peer.install, Venv)]
    assert requirements
    assert [one for one in requirements if not re.fullmatch(r"[a-z-]+(\[[a-z]+\])?==[0-9.]+", one)] == []


def test_a_peer_that_is_not_there_says_why(tmp_path: Path):
    """Nothing is left out without a word: not allowed, not to be had, or not to be found."""
    for install, why in (
        (Venv(requirement="a==1", program="a"), "--no-install"),
        (Debian(packages=("a",), program="no-such-program"), "--no-install"),
        (Nowhere(reason="never published"), "never published"),
    ):
        with pytest.raises(NotInstalledError, match=why):
            install.install(tmp_path / "a", allowed=False)
    nobody = Peer(name="nobody", install=Nowhere(reason="never published"), target=PEERS[0].target)
    found, absent = contestants([nobody], tmp_path, install=True)
    assert [one.name for one in found] == ["direct", "penstock"]
    assert absent == {"nobody": "never published"}


def test_peers_and_scenarios_are_chosen_by_name():
    """In their own order; a wrong name is an error that says which there are."""
    assert [peer.name for peer in selected("vllm-router,nginx")] == ["nginx", "vllm-router"]
    assert selected("none") == ()
    assert selected("all") == PEERS
    assert [scenario.name for scenario in selected_scenarios(["s500", "c1"], 1)] == ["c1", "s500"]
    assert list(selected_scenarios([], 1)) == list(SCENARIOS)
    for choose in (lambda: selected("ngnix"), lambda: list(selected_scenarios(["s1"], 1))):
        with pytest.raises(ValueError, match="there are"):
            choose()


def test_a_scaled_scenario_still_has_work():
    """However small, there is a connection and there are events; pace and kind stay."""
    for scenario in SCENARIOS:
        small = scenario.scaled(0.001)
        assert small.connections >= 1
        assert (small.events is None) is (scenario.events is None)
        assert small.gap_ms == scenario.gap_ms
