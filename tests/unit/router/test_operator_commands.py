"""`penstock spot-agent`, `drain`, `restore` and `replicas` as typed: help, mistakes, what reaches the agent."""

import configparser
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self, get_args

import pytest
import yaml
from typer.testing import CliRunner, Result

import backends.spot_agent.admin_client
import backends.spot_agent.process
import config.load
from backends.spot_agent.admin_client import ReplicaView
from backends.spot_agent.notice import Provider
from backends.spot_agent.process import AgentOptions
from router.cli import build_app
from router.draining import listed
from router.spot_command import ProviderChoice

ROOT = Path(__file__).resolve().parents[3]
READY = ReplicaView("h100", "ready", "", 0, None, None, released=False)
GONE = ReplicaView("a100-spot", "reclaiming", "", 12, 1042.4, "reclaim: spot interruption", released=True)
COMMANDS = ("spot-agent", "drain", "restore", "replicas")


def cli(*args: str, env: Mapping[str, str | None] | None = None) -> Result:
    return CliRunner().invoke(build_app(), args, env=env)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> list[AgentOptions]:
    """What the agent is handed instead of running; gateways release whatever is asked, any key is found."""
    options: list[AgentOptions] = []

    class Obliging:
        def __init__(self, url: str, key: str | None) -> None:
            self.url = url

        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *_: object) -> None: ...

        async def replicas(self) -> list[ReplicaView]:
            return [READY, GONE]

        async def drain(self, name: str, deadline_s: float | None) -> ReplicaView:
            return GONE

        async def restore(self, name: str) -> ReplicaView:
            return READY

    def agent(given: AgentOptions, wall: Callable[[], float]) -> int:
        options.append(given)
        return 0

    monkeypatch.setattr(backends.spot_agent.process, "run", agent)
    monkeypatch.setattr(backends.spot_agent.admin_client, "AdminClient", Obliging)
    return options


def test_flags_reach_the_agent(run: list[AgentOptions], tmp_path: Path):
    """Each says what the agent's option of its name says; the key is the file's content."""
    key = tmp_path / "key"
    key.write_text("sesame\n")
    result = cli(
        "spot-agent", "--gateway", "http://a:1/", "--gateway", "https://b", "--replica", "r", "--provider", "azure",
        "--key", f"file:{key}", "--metadata-url", "http://127.0.0.1:5", "--exit-on-release",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert run == [
        AgentOptions(
            gateways=["http://a:1", "https://b"], replica="r", provider=Provider.AZURE, key="sesame",
            metadata_url="http://127.0.0.1:5", exit_on_release=True,
        )
    ]  # fmt: skip
    assert cli("spot-agent", "--gateway", "http://a:1", "--replica", "r").exit_code == 0
    assert run[1] == AgentOptions(gateways=["http://a:1"], replica="r")


def test_the_providers_are_those_there_are():
    """The command line names them without loading what they mean."""
    assert get_args(ProviderChoice) == ("auto", *(provider.value for provider in Provider))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["spot-agent", "--replica", "r"], "Missing option '--gateway'"),
        (["spot-agent", "--gateway", "http://h:1"], "Missing option '--replica'"),
        (["spot-agent", "--gateway", "http://h:1", "--replica", " "], "name the replica as the gateway's configuration"),
        (["spot-agent", "--gateway", "h:1", "--replica", "r"], "write http://HOST:PORT"),
        (["spot-agent", "--gateway", "http://h:1", "--replica", "r", "--provider", "ibm"], "'ibm' is not one of"),
        (["drain"], "Missing argument"),
        (["drain", "a", "--deadline", "-1"], "--deadline"),
        (["drain", "a", "--deadline", "inf"], "not a number of seconds"),
        (["drain", "a", "--deadline", "nan"], "--deadline"),
        (["drain", "a", "--gateway", "http://h/admin"], "write http://HOST:PORT"),
        (["drain", "a", "--key", "sesame"], "write env:NAME or file:/path"),
        (["restore", "a", "--key", "env:NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set"),
        (["replicas", "--key", "file:/nowhere/key"], "check the path after file:"),
        (["replicas", "--key", "env:STRANGE"], "cannot be sent as a key"),
    ],
)  # fmt: skip
def test_mistakes_exit_with_2(run: list[AgentOptions], args: list[str], said: str):
    """Before anybody is asked, and without showing a key."""
    result = cli(*args, env={"STRANGE": "a\nb"})
    assert (result.exit_code, run) == (2, []), result.output
    assert said in result.output
    assert "sesame" not in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_that_parse(run: list[AgentOptions], monkeypatch: pytest.MonkeyPatch, command: str):
    """Each command's --help shows invocations that the command accepts."""
    monkeypatch.setattr(config.load, "referenced_secret", lambda reference: "k")
    text = cli(command, "--help").output.replace("\\\n", " ")
    shown: list[list[str]] = [
        line.split("penstock ", 1)[1].split(" && ")[0].split()
        for line in text.splitlines()
        if line.strip().startswith("penstock ")
    ]
    assert any(words[0] == command for words in shown)
    for words in shown:
        result = cli(*words)
        assert result.exit_code == 0, (words, result.output)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_listed(command: str):
    """`penstock --help` names each with one line."""
    lines = [line.split() for line in cli("--help").output.splitlines()]
    assert any(words[:1] == [command] and len(words) > 3 for words in lines)


def test_the_table_of_replicas():
    """Name, lifecycle, requests, deadline, why; aligned, without spaces at the ends of lines."""
    table: Any = listed([READY, GONE], 1000.0)
    assert table.splitlines() == [
        "NAME       LIFECYCLE             REQUESTS  DEADLINE  WHY",
        "h100       ready                 0         -         -",
        "a100-spot  reclaiming, released  12        42 s      reclaim: spot interruption",
    ]
    assert "passed" in listed([GONE], 2000.0)


def test_the_systemd_unit_runs_a_command_that_parses(run: list[AgentOptions], monkeypatch: pytest.MonkeyPatch):
    """Its ExecStart, with the flags that its head proposes; the key comes as a credential."""
    monkeypatch.setattr(config.load, "referenced_secret", lambda reference: reference)
    text = (ROOT / "deploy/systemd/penstock-spot-agent.service").read_text()
    unit = configparser.ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(text)
    proposed = re.search(r"SPOT_AGENT_FLAGS=([^']+)'", text)
    assert proposed is not None
    program, *words = (
        unit["Service"]["ExecStart"]
        .replace("$SPOT_AGENT_FLAGS", proposed[1])
        .replace("${CREDENTIALS_DIRECTORY}", "/c")
        .split()
    )
    result = cli(*words)
    assert (Path(program).name, result.exit_code) == ("penstock", 0), result.output
    assert run == [AgentOptions(gateways=["http://10.0.0.2:8080"], replica="a100-spot", key="file:/c/admin.key")]
    assert unit["Service"]["Restart"] == "on-failure"  # and so not after a release


def test_the_daemonset_runs_a_command_that_parses(run: list[AgentOptions], monkeypatch: pytest.MonkeyPatch):
    """Its arguments are ours; the node's name is what the gateway is told."""
    monkeypatch.setattr(config.load, "referenced_secret", lambda reference: "k")
    things = yaml.safe_load_all((ROOT / "deploy/kubernetes/components/spot-agent/agent.yaml").read_text())
    (pod,) = (thing["spec"]["template"]["spec"] for thing in things if thing["kind"] == "DaemonSet")
    assert pod["hostNetwork"] is True
    result = cli(*pod["containers"][0]["args"])
    assert result.exit_code == 0, result.output
    assert run[0].replica == "$(NODE_NAME)"  # of the variable that is set from the node's
    assert pod["containers"][0]["env"][0]["valueFrom"]["fieldRef"]["fieldPath"] == "spec.nodeName"
