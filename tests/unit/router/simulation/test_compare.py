"""`--compare` and `--plot`: several policies side by side, and the pictures."""

import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from typer.testing import CliRunner, Result

import router.simulation.plot
from router.cli import build_app
from router.simulation.compare import compare, table
from router.simulation.curves import Curves, sampled
from router.simulation.plot import draw
from router.simulation.simulate import Options, Run, policies
from tests.support.simulation_files import FLEETS, ONE, written

NAMES = ("kv_usage.svg", "queue_depth.svg", "ttft_cdf.svg", "usd_by_tier.svg")


def simulate(*args: str | Path) -> Result:
    return CliRunner().invoke(build_app(), ["simulate", *map(str, args)])


def curves(**options: object) -> Curves:
    return sampled(Run(Options(fleet=FLEETS / "small_kv.yaml", limit=60, rate_scale=4.0, **options)))[1]  # type: ignore[arg-type]


def test_every_policy_is_compared(tmp_path: Path):
    """--compare runs all, in the registry's order, prints a line each, and the JSON holds what each alone would have written."""
    out = tmp_path / "r.json"
    result = simulate("--compare", "--limit", "20", "--json", out)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["policy", *policies()]
    told = json.loads(out.read_text())
    assert list(told) == list(policies())
    assert told["least_load"] == Run(Options(limit=20, policy="least_load")).play()


def test_some_policies_are_compared_as_named():
    """--policies keeps the order given and takes a name that stands twice once; an unknown one is a usage error."""
    result = simulate("--policies", "round_robin, penstock,round_robin", "--limit", "5")
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["policy", "round_robin", "penstock"]
    refused = simulate("--policies", "penstock,fastest", "--limit", "5")
    assert refused.exit_code == 2
    assert "'fastest' is no policy; there are penstock" in " ".join(refused.stderr.split())


def test_results_come_in_the_order_of_the_runs():
    """Whichever process ends first; each end is told."""
    runs = [Options(limit=150), Options(limit=1)]
    done: list[int] = []
    results = compare(runs, curves=False, done=done.append)
    assert [told["requests"] for told, _ in results] == [150, 1]
    assert done == [1, 2]


def test_what_is_wrong_with_a_file_is_told_once(tmp_path: Path):
    """A comparison does not begin with files that cannot be read."""
    result = simulate("--compare", "--fleet", written(tmp_path, "f.yaml", ONE.replace("kv_blocks", "kv_block")))
    assert (result.exit_code, result.stderr.count("\n"), result.stdout) == (78, 1, "")


def test_the_table_is_aligned_text():
    """Columns of one width, names to the left and figures to the right, no trailing blanks."""
    one = Run(Options(limit=2)).play()
    lines = table([one, one]).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("policy    done")
    assert lines[1] == lines[2]
    assert all(line == line.rstrip() for line in lines)
    assert len(lines[0]) == len(lines[1])


def test_looking_changes_nothing():
    """A run that is sampled for pictures has the figures of one that is not."""
    options = Options(fleet=FLEETS / "small_kv.yaml", limit=60, rate_scale=4.0)
    assert sampled(Run(options))[0] == Run(options).play()


def test_curves_are_of_one_length_and_bounded(tmp_path: Path):
    """Everything over time has a value at every sample, and there are few, however long a backlog lasts."""
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"0.{n % 10},{1 + n},1500\n" for n in range(40))
    fleet = written(tmp_path, "f.yaml", ONE)
    options = Options(fleet=fleet, trace=written(tmp_path, "t.csv", text), policy="round_robin")
    told, seen = sampled(Run(options))
    assert isinstance(told["duration_s"], float)
    assert told["duration_s"] > 400  # 40 answers, one after another
    lengths = {len(seen.at_gateway), len(seen.in_engines), *map(len, seen.kv_usage.values())}
    assert lengths == {len(seen.times_s)}
    assert 200 < len(seen.times_s) <= 800
    assert list(seen.times_s) == sorted(seen.times_s)
    assert max(seen.in_engines) > 30
    assert list(seen.ttft_s) == sorted(seen.ttft_s)
    assert len(seen.ttft_s) == seen.completed == told["completed"]


@pytest.mark.parametrize("names", [["penstock"], ["penstock", "round_robin"], list(policies())])
def test_pictures_say_what_they_show(tmp_path: Path, names: list[str]):
    """Each is SVG, names its axes' units, and equal runs draw equal bytes, whose dates would differ."""
    seen = [curves(policy=name) for name in names]
    paths = draw(seen, tmp_path / "new" / "folder")
    assert sorted(path.name for path in paths) == list(NAMES)
    for path in paths:
        assert ET.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        labels = path.read_text().split("<!-- ")
        assert any("(s)" in label or "waiting" in label or "US dollars" in label for label in labels)
    again = draw(seen, tmp_path / "again")
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]


def test_gpu_types_have_panels_and_gone_replicas_gaps(tmp_path: Path):
    """A type whose machines are all away has nothing to draw then, and is drawn."""
    spot = written(tmp_path, "s.json", '{"data": [1, 0, 1], "gap_seconds": 4}')
    fleet = "replicas:\n" + "".join(
        f"  - {{name: {name}, backend: simulated, models: [m], gpu: {{type: {gpu}}}, cost: {{tier: {tier}}}}}\n"
        for name, gpu, tier in (("a", "A100-80G", "spot"), ("b", "H100-80G", "reserved"))
    )
    options = Options(fleet=written(tmp_path, "f.yaml", fleet), limit=60, spot=(spot,), spot_notice_s=1.0)
    seen = sampled(Run(options))[1]
    assert list(seen.kv_usage) == ["A100-80G", "H100-80G"]
    assert None in seen.kv_usage["A100-80G"]
    assert None not in seen.kv_usage["H100-80G"]
    assert "<!-- A100-80G -->" in next(p for p in draw([seen], tmp_path) if p.name == "kv_usage.svg").read_text()


def test_the_command_draws(tmp_path: Path):
    """--plot makes the folder, names each file, alone and in a comparison."""
    folder = tmp_path / "p"
    for flags in ((), ("--policies", "penstock,round_robin")):
        result = simulate("--limit", "20", "--plot", folder, *flags)
        assert result.exit_code == 0
        assert all(f"wrote {folder / name}" in result.stderr for name in NAMES)
    assert sorted(path.name for path in folder.iterdir()) == list(NAMES)


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Before anything is run."""
    monkeypatch.setattr(router.simulation.plot, "find_spec", lambda _: None)
    result = simulate("--limit", "20", "--plot", tmp_path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert 'pip install "penstock[plot]"' in result.stderr


def test_a_file_is_no_folder(tmp_path: Path):
    """--plot with a file's name is refused before anything is run."""
    result = simulate("--limit", "20", "--plot", written(tmp_path, "x", ""))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "is a file; name a folder" in " ".join(result.stderr.split())
