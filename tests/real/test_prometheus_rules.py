"""The rules as Prometheus' own tool reads and tries them."""

import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.real

ROOT = Path(__file__).resolve().parents[2]
RULES = sorted((ROOT / "metrics/rules").glob("*.yml"))
TESTS = sorted((ROOT / "tests/real/prometheus").glob("*.test.yml"))


def promtool(*arguments: str | Path) -> str:
    """What it says; fails with that unless it is content."""
    binary = shutil.which("promtool")
    if binary is None:
        pytest.fail("no promtool on PATH; run `make engines`")
    done = subprocess.run([binary, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def alerts() -> list[str]:
    groups = [group for path in RULES for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule["alert"] for group in groups for rule in group["rules"] if "alert" in rule]


def test_the_rules_are_rules():
    """Promtool reads every file and every expression in it."""
    said = promtool("check", "rules", "--lint-fatal", *RULES)
    assert said.count("SUCCESS") == len(RULES)


@pytest.mark.parametrize("file", TESTS, ids=lambda path: path.name)
def test_the_rules_do_what_their_tests_say(file: Path, tmp_path: Path):
    """Alerts fire with these labels and words, recorded series have these values."""
    paths = f"[{', '.join(map(str, RULES))}]"
    tried = tmp_path / file.name
    tried.write_text(file.read_text().replace("rule_files: [RULES]", f"rule_files: {paths}"))
    assert "SUCCESS" in promtool("test", "rules", tried)


def test_each_alert_fires_in_one_test_and_is_quiet_in_another():
    """An alert that never fires, or always, helps nobody."""
    fires: Counter[str] = Counter()
    quiet: Counter[str] = Counter()
    for file in TESTS:
        for test in yaml.safe_load(file.read_text())["tests"]:
            for tried in test.get("alert_rule_test", []):
                (fires if tried["exp_alerts"] else quiet)[tried["alertname"]] += 1
    assert set(alerts()) == set(fires) == set(quiet)


def test_compose_s_prometheus_is_configured(tmp_path: Path):
    """Promtool reads compose's configuration with the rules where the container has them."""
    document: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    mounts = dict(volume.split(":")[:2][::-1] for volume in document["services"]["prometheus"]["volumes"])
    text = (ROOT / mounts["/etc/prometheus/prometheus.yml"]).read_text()
    for inside, outside in mounts.items():
        if outside.startswith("./"):
            text = text.replace(f"{inside}/", f"{(ROOT / outside).resolve()}/")
    config = tmp_path / "prometheus.yml"
    config.write_text(text)
    said = promtool("check", "config", config)
    assert re.findall(r"SUCCESS: (\d+) rule files found", said) == [str(len(RULES))]
