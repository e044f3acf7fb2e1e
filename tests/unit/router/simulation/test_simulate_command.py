"""`penstock simulate` as a user meets it: streams, exit codes, the file it writes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from router.cli import build_app
from router.simulation.simulate import policies
from tests.support.patience import PATIENCE_S
from tests.support.simulation_files import AZURE, ONE, written

KEYS = """requests, completed, rejected, failed, slo_attainment, goodput_rps, ttft_p50_s, ttft_p99_s, itl_p50_s, itl_p99_s, e2e_p99_s,
queue_p99_s, engine_preemptions, prefix_hit_ratio, recomputed_tokens, output_tokens, usd_total, usd_per_million_output_tokens,
by_service_tier, by_cost_tier, by_tenant, decisions_per_s"""


def simulate(*args: str | Path) -> Result:
    return CliRunner().invoke(build_app(), ["simulate", *map(str, args)])


def test_without_a_word_the_embedded_fleet_serves_a_synthetic_trace():
    """Nothing has to be written first; figures go to stdout, the pace, which no two machines share, to stderr."""
    result = simulate("--limit", "5")
    assert result.exit_code == 0
    assert "fleet embedded; trace synthetic" in result.stdout
    assert "slo_attainment" in result.stdout
    assert "a minute" in result.stderr
    assert "a minute" not in result.stdout


def test_the_json_holds_what_was_asked_for(tmp_path: Path):
    """Each figure is a key of its own; `run` names the options, without this machine's folders."""
    out, fleet = tmp_path / "r.json", written(tmp_path, "f.yaml", ONE)
    trace = written(tmp_path, "t.csv", AZURE)
    result = simulate("--trace", trace, "--fleet", fleet, "--rate-scale", "2", "--json", out)
    assert result.exit_code == 0
    told = json.loads(out.read_text())
    assert {key.strip() for key in KEYS.split(",")} <= set(told)
    assert (told["run"]["trace"], told["run"]["fleet"], told["run"]["rate_scale"]) == ("t.csv", "f.yaml", 2.0)
    assert str(tmp_path) not in out.read_text()
    assert (told["requests"], told["completed"]) == (2, 2)


@pytest.mark.parametrize("policy", ["penstock", "power_of_two"])
def test_two_runs_write_the_same_bytes(tmp_path: Path, policy: str):
    """In processes of their own, with different hash seeds, the file is the same to the byte."""
    penstock = Path(sys.executable).with_name("penstock")
    outs = [tmp_path / f"{number}.json" for number in (1, 2)]
    for out in outs:
        words = ["simulate", "--limit", "150", "--rate-scale", "4", "--policy", policy, "--json", str(out)]
        environ = {"PYTHONHASHSEED": out.stem, "PATH": ""}
        subprocess.run([penstock, *words], env=environ, check=True, capture_output=True, timeout=PATIENCE_S)
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_help_names_every_policy():
    """The registry decides what may be said, and the help says it, with examples."""
    text = " ".join(simulate("--help").stdout.split())
    assert ", ".join(policies()) in text
    assert "penstock simulate --trace" in text


def test_an_unknown_policy_is_told_which_there_are():
    """A usage error that names the nearest and all."""
    result = simulate("--policy", "round-robin")
    assert result.exit_code == 2
    said = " ".join(result.stderr.split())
    assert "did you mean round_robin? there are penstock, round_robin" in said


def test_a_bad_fleet_is_told_in_words(tmp_path: Path):
    """A fleet file with a mistake ends with the configuration's own message and exit code 78."""
    result = simulate("--fleet", written(tmp_path, "f.yaml", ONE.replace("kv_blocks", "kv_block")))
    assert result.exit_code == 78
    assert "replicas[0].capacity.kv_block: unknown key; did you mean `kv_blocks`?" in result.stderr


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--rate-scale", "0"), "--rate-scale: 0 is not from"),
        (("--rate-scale", "nan"), "--rate-scale: nan is not from"),
        (("--spot-scale", "-1"), "--spot-scale: -1 is not from"),
        (("--seed", "-1"), "--seed"),
        (("--limit", "0"), "--limit"),
        (("--trace", "nowhere.csv"), "penstock simulate: nowhere.csv: No such file or directory; name a readable file"),
        (("--spot", "nowhere.json"), "nowhere.json: No such file or directory"),
        (("--json", "nowhere/r.json"), "--json: nowhere/r.json cannot be written; name a file in a folder that exists"),
        (("extra",), "extra"),
    ],
)
def test_a_wrong_flag_is_a_usage_error(flags: tuple[str, ...], told: str):
    """Exit code 2 and one line that names the flag or the file; nothing was run."""
    result = simulate(*flags, "--limit", "1") if flags[0] != "--limit" else simulate(*flags)
    assert (result.exit_code, result.stdout) == (2, "")
    assert told in " ".join(result.stderr.split())


def test_a_malformed_trace_is_named_with_its_line(tmp_path: Path):
    """What the reader refuses is a line on stderr and exit code 2, not a traceback."""
    result = simulate("--trace", written(tmp_path, "t.csv", AZURE + "today,-1,1\n"))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "penstock simulate: t.csv:4: TIMESTAMP 'today' is neither a date nor a number\n"
