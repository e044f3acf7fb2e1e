"""The container files, as far as they can be read without a container engine."""

import fnmatch
import json
import re
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, continuation lines joined."""
    text = (ROOT / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [
        (word, rest.strip()) for line in joined.splitlines() if line.strip() for word, rest in [line.split(None, 1)]
    ]


def of(name: str) -> list[str]:
    return [rest for word, rest in instructions() if word == name]


def compose() -> dict[str, Any]:
    document = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert isinstance(document, dict)
    return document


def test_what_is_copied_exists_and_is_sent():
    """Each COPY source is in the repository and let through by .dockerignore."""
    ignore = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    sources = [source for rest in of("COPY") if not rest.startswith("--from") for source in rest.split()[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists(), source
        matching = [line for line in ignore if fnmatch.fnmatch(source, line.removeprefix("!"))]
        assert matching[-1].startswith("!"), source
    assert ignore[0] == "*"


def test_every_package_is_copied():
    """The image holds all that pyproject.toml installs."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    copied = " ".join(of("COPY"))
    assert [pattern for pattern in patterns if f"{pattern.rstrip('*')} " not in f"{copied} "] == []


def test_the_install_is_pinned_and_hashed():
    """Nothing gets into the image that the lock does not name; the project itself brings no dependencies."""
    installs = [rest for rest in of("RUN") if "pip install" in rest]
    assert len(installs) == 3
    assert "--require-hashes -r requirements-container.lock" in installs[0]
    assert "--require-hashes --target /opt/compiler -r requirements-compiler.lock" in installs[1]
    assert "--no-deps --no-build-isolation ." in installs[2]


def test_the_compiler_stays_behind():
    """What compiles is no part of what is carried to the second stage."""
    carried = [rest for rest in of("COPY") if rest.startswith("--from")]
    assert carried == ["--from=builder /opt/penstock /opt/penstock"]
    assert "PYTHONPATH=/opt/compiler PENSTOCK_COMPILED=1" in of("RUN")[-1]


def test_it_runs_as_nobody_in_particular():
    """The last stage drops root for a numeric UID in group 0, after everything that needs root."""
    words = [word for word, _ in instructions()]
    last_stage = words[len(words) - 1 - words[::-1].index("FROM") :]
    assert len(of("FROM")) == 2
    assert re.fullmatch(r"[1-9]\d*:0", of("USER")[-1])
    assert "RUN" not in last_stage[last_stage.index("USER") :]
    assert "COPY" not in last_stage[last_stage.index("USER") :]


def test_it_serves_on_all_interfaces_and_is_watched():
    """`docker run` serves on 0.0.0.0, exec form so that SIGTERM arrives, and HEALTHCHECK asks /livez."""
    assert [json.loads(rest) for rest in (of("ENTRYPOINT")[0], of("CMD")[0])] == [["penstock"], ["serve"]]
    assert "PENSTOCK_SERVER__HOST=0.0.0.0" in of("ENV")[-1]
    (check,) = of("HEALTHCHECK")
    command = json.loads(check[check.index("[") :])
    assert command[:2] == ["python", "-c"]
    compile(command[2], "healthcheck", "exec")
    assert "/livez" in command[2]


def test_the_image_s_settings_are_known():
    """Each PENSTOCK_ variable of the image is one that `load` takes."""
    from config.load import load

    variables = dict(item.split("=", 1) for rest in of("ENV") for item in rest.split() if item.startswith("PENSTOCK_"))
    config = load(None, {}, variables)
    assert (config.server.host, config.server.port) == ("0.0.0.0", int(of("EXPOSE")[0]))


def test_the_bases_match_what_we_support():
    """Both stages are the oldest Python we promise, so that what is tested is what runs."""
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    assert all(rest.startswith(f"python:{wanted}-slim") for rest in of("FROM"))


def test_compose_binds_to_loopback_only():
    """Nobody is asked for a password, so nobody from outside may come."""
    ports = [port for service in compose()["services"].values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_compose_images_are_pinned():
    """An image is built here or carries a version."""
    for name, service in compose()["services"].items():
        assert "build" in service or re.search(r":v?\d+\.\d+", service["image"]), name


def test_compose_mounts_and_names_exist():
    """Mounted files are in the repository; named volumes and depended-on services are declared."""
    document = compose()
    for service in document["services"].values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (ROOT / source).exists() if source.startswith("./") else source in document["volumes"], source
        assert set(service.get("depends_on", [])) <= document["services"].keys()


def test_prometheus_scrapes_the_gateway_and_grafana_reads_prometheus():
    """The targets are compose's service names with the ports they listen on; Prometheus' default path is /metrics."""
    prometheus = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text())
    (job,) = prometheus["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"gateway:{of('EXPOSE')[0]}"]}]
    datasources = yaml.safe_load((ROOT / "deploy/compose/grafana/datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    assert [source["url"] for source in datasources] == ["http://prometheus:9090"]
    assert datasources[0]["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]


def test_compose_gives_the_gateway_time_to_drain():
    """The grace period is longer than the drain's."""
    from config.schema import Server

    grace = compose()["services"]["gateway"]["stop_grace_period"]
    assert int(grace.removesuffix("s")) > Server().drain_timeout_s


def mounted(service: str) -> dict[str, Path]:
    """Of the repository's own files and folders: where they are in the container, and where here."""
    volumes = [volume.split(":") for volume in compose()["services"][service]["volumes"]]
    return {inside: ROOT / outside for outside, inside, *_ in volumes if outside.startswith("./")}


def test_prometheus_has_the_rules():
    """Each file of metrics/rules is where prometheus.yml looks for it."""
    prometheus = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text())
    (pattern,) = prometheus["rule_files"]
    folder = mounted("prometheus")[pattern.rpartition("/")[0]]
    found = {path.name for path in folder.iterdir() if fnmatch.fnmatch(path.name, pattern.rpartition("/")[2])}
    assert found == {"alerts.yml", "recording.yml"}


def test_grafana_has_the_dashboards():
    """Its provider's path is where they are mounted, the first page one sees is among them."""
    (provisioning,) = mounted("grafana")["/etc/grafana/provisioning/dashboards"].glob("*.yaml")
    (provider,) = yaml.safe_load(provisioning.read_text())["providers"]
    folder = mounted("grafana")[provider["options"]["path"]]
    assert len(list(folder.glob("*.json"))) == 5
    home = Path(compose()["services"]["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert (folder / home.name).is_file()
