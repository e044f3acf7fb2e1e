"""`deploy/kubernetes`: what the overlays come to is valid by Kubernetes' own schemas, safe, and starts what this release is."""

import hashlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import typer
import yaml

from config.load import load
from router.cli import build_app

FOLDER = Path(__file__).resolve().parents[2] / "deploy/kubernetes"
OVERLAYS = sorted(folder.name for folder in (FOLDER / "overlays").iterdir())
SCHEMAS = "1.33"  # a release that is still supported, and old enough to be somewhere
OTHERS = {"ScaledObject", "ServiceMonitor", "PrometheusRule"}  # no kinds of Kubernetes' own
Thing = dict[str, Any]


def rendered(overlay: str) -> list[Thing]:
    found = yaml.safe_load_all((FOLDER / f"rendered/{overlay}.yaml").read_text())
    return [thing for thing in found if thing is not None]


def each() -> Iterator[tuple[str, Thing]]:
    for overlay in OVERLAYS:
        for thing in rendered(overlay):
            yield overlay, thing


def pods() -> Iterator[tuple[str, Thing]]:
    """(name, pod spec) of whatever starts pods."""
    for overlay, thing in each():
        if thing["kind"] in {"Deployment", "DaemonSet", "StatefulSet"}:
            yield f"{overlay}/{thing['metadata']['name']}", thing["spec"]["template"]["spec"]


def config_of(overlay: str) -> str:
    (config,) = (
        thing for thing in rendered(overlay) if thing["kind"] == "ConfigMap" and "penstock.yaml" in thing["data"]
    )
    text: str = config["data"]["penstock.yaml"]
    return text


def test_what_is_rendered_is_what_the_overlays_say():
    """By a digest of all sources; `deploy/kubernetes/render.sh` renders again."""
    files = (path for path in FOLDER.rglob("*") if path.is_file() and path.name != "render.sh")
    names = sorted(f"./{path.relative_to(FOLDER)}" for path in files if "rendered" not in path.parts)
    lines = "".join(f"{hashlib.sha256((FOLDER / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    digest = hashlib.sha256(lines.encode()).hexdigest()
    stale = [name for name in OVERLAYS if digest not in (FOLDER / f"rendered/{name}.yaml").read_text().split("\n")[0]]
    assert stale == [], "run deploy/kubernetes/render.sh"


def test_all_of_it_is_valid():
    """Every object, strictly: a misspelt field is an error; each named once."""
    names: set[tuple[str, ...]] = set()
    for overlay, thing in each():
        if thing["kind"] not in OTHERS:
            kubernetes_validate.validate(thing, SCHEMAS, strict=True)
        name = (overlay, thing["kind"], thing["metadata"].get("namespace", ""), thing["metadata"]["name"])
        assert name not in names
        names.add(name)
    assert len(names) > 30


def test_no_pod_is_more_than_it_must_be():
    """No root, no privileges, a bounded memory; only agents on the host's network."""
    for name, pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod.get("hostNetwork", False) == name.endswith("spot-agent"), name
        for container in pod["containers"]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
            assert "memory" in container["resources"]["limits"], name
            assert not container["image"].endswith(":latest") or name.startswith("try/"), name


def test_roles_only_read():
    """And nothing but what discovery looks at."""
    seen = 0
    for _, thing in each():
        for rule in thing.get("rules", []) if thing["kind"] in {"Role", "ClusterRole"} else []:
            assert set(rule["verbs"]) == {"get", "list", "watch"}
            assert set(rule["resources"]) <= {"endpointslices", "nodes"}
            seen += 1
    assert seen


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_configuration_is_good(overlay: str, tmp_path: Path):
    """As this release reads it, with the key where the pod has it."""
    key = tmp_path / "admin.key"
    key.write_text("0123456789abcdef-of-the-admin")
    file = tmp_path / "penstock.yaml"
    file.write_text(config_of(overlay).replace("/etc/penstock/secrets/admin.key", str(key)))
    gateway = next(pod for name, pod in pods() if name == f"{overlay}/penstock")
    variables = {one["name"]: one["value"] for one in gateway["containers"][0].get("env", [])}
    config = load(file, {}, variables)
    assert config.server.admin_key == key.read_text()
    several = next(
        thing
        for thing in rendered(overlay)
        if thing["metadata"]["name"] == "penstock" and thing["kind"] == "Deployment"
    )
    assert (
        several["spec"]["replicas"] == 1 or config.redis.enabled
    )  # gateways that do not know of each other overfill engines
    assert gateway["terminationGracePeriodSeconds"] > config.server.drain_timeout_s + 10
    for source in config.discovery.kubernetes:
        services = {thing["metadata"]["name"] for thing in rendered(overlay) if thing["kind"] == "Service"}
        assert source.service in services


def test_every_pool_is_found_and_guarded():
    """A headless Service that selects the pool's pods, the engine's label for the network policy, time to move streams."""
    things = rendered("mixed")
    pools = [
        thing for thing in things if thing["kind"] == "Deployment" and thing["metadata"]["name"].startswith("vllm-")
    ]
    services = {thing["metadata"]["name"]: thing["spec"] for thing in things if thing["kind"] == "Service"}
    assert len(pools) == 3
    for pool in pools:
        labels = pool["spec"]["template"]["metadata"]["labels"]
        service = services[pool["metadata"]["name"]]
        assert service["clusterIP"] == "None"
        assert service["selector"].items() <= labels.items()
        others = [one["spec"]["selector"]["matchLabels"] for one in pools if one is not pool]
        assert not any(selector.items() <= labels.items() for selector in others)
        assert labels["app.kubernetes.io/component"] == "engine"
        (container,) = pool["spec"]["template"]["spec"]["containers"]
        (stop_s,) = (int(arg.split("=")[1]) for arg in container["args"] if arg.startswith("--shutdown-timeout="))
        assert 0 < stop_s < pool["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]


def test_our_own_commands_are_understood():
    """What the pods run is a command of this release, its flags too."""
    ours = [container for _, pod in pods() for container in pod["containers"] if "penstock" in container["image"]]
    assert {container["args"][0] for container in ours} == {"serve", "spot-agent"}
    commands = typer.main.get_command(build_app()).commands
    known = {flag for name in ("serve", "spot-agent") for option in commands[name].params for flag in option.opts}
    flags = {arg for container in ours for arg in container["args"] if arg.startswith("--")}
    assert flags <= known, shlex.join(sorted(flags - known))
