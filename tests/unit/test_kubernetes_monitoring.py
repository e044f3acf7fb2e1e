"""deploy/kubernetes/monitoring, built as Kustomize would, as far as that goes without it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from metrics.dashboards.files import rendered
from metrics.rules.__main__ import prometheus_rule
from metrics.rules.recorded import RULES

ROOT = Path(__file__).resolve().parents[2]
MONITORING = ROOT / "deploy/kubernetes/monitoring"
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")  # RFC 1123, as Kubernetes wants names
_APPLY_BYTES = 262_144  # `kubectl apply` keeps what it applied in an annotation, which may be no larger
_KNOWN = {"apiVersion", "kind", "resources", "configMapGenerator", "generatorOptions"}


def kustomization(folder: Path) -> dict[str, Any]:
    document = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert (document["apiVersion"], document["kind"]) == ("kustomize.config.k8s.io/v1beta1", "Kustomization")
    assert document.keys() <= _KNOWN, "what this test does not build"
    return dict(document)


def built(folder: Path) -> Iterator[dict[str, Any]]:
    """The objects: resources as they are, folders built in turn, ConfigMaps from files of their own folder."""
    document = kustomization(folder)
    for resource in document.get("resources", []):
        path = folder / resource
        if path.is_dir():
            yield from built(path.resolve())
        else:
            yield from yaml.safe_load_all(path.read_text())
    options = document.get("generatorOptions", {})
    for made in document.get("configMapGenerator", []):
        files = [folder / name for name in made["files"]]
        assert all(path.resolve().parent == folder.resolve() for path in files), "Kustomize reads nothing from outside"
        metadata = {key: options[key] for key in ("labels", "annotations") if key in options}
        data = {path.name: path.read_text() for path in files}
        yield {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": made["name"], **metadata}, "data": data}


def objects(kind: str) -> list[dict[str, Any]]:
    return [found for found in built(MONITORING) if found["kind"] == kind]


def test_objects_have_names_of_their_own() -> None:
    """Valid and unique by kind, so that none takes another's place; labels say whose they are."""
    found = list(built(MONITORING))
    names = [(item["kind"], item["metadata"]["name"]) for item in found]
    assert len(names) == len(set(names)) == 7
    assert all(_NAME.fullmatch(name) and len(name) <= 253 for _, name in names)
    assert {item["metadata"]["labels"]["app.kubernetes.io/name"] for item in found} == {"penstock"}


def test_every_dashboard_is_a_config_map_that_the_sidecar_finds() -> None:
    """One each, small enough to be applied, with the label that Grafana's sidecar looks for."""
    maps = objects("ConfigMap")
    assert {name: text for item in maps for name, text in item["data"].items()} == rendered()
    for item in maps:
        assert item["metadata"]["labels"]["grafana_dashboard"] == "1"
        assert sum(len(text.encode()) for text in item["data"].values()) < 0.8 * _APPLY_BYTES, item["metadata"]["name"]


def test_the_operator_s_rules_are_the_rules() -> None:
    """Stale or edited by hand: `python -m metrics.rules > deploy/kubernetes/monitoring/prometheusrule.yaml`."""
    assert (MONITORING / "prometheusrule.yaml").read_text() == prometheus_rule()
    (rule,) = objects("PrometheusRule")
    groups = [group for path in sorted(RULES.glob("*.yml")) for group in yaml.safe_load(path.read_text())["groups"]]
    assert rule["apiVersion"] == "monitoring.coreos.com/v1"
    assert rule["spec"]["groups"] == groups


def test_rules_come_as_a_config_map_where_there_is_no_operator() -> None:
    """metrics/rules is a folder of its own for Kustomize, with all files."""
    (item,) = built(RULES)
    assert set(item["data"]) == {path.name for path in RULES.glob("*.yml")}


def test_the_monitor_scrapes_the_gateway() -> None:
    """Its Service by label, the port by name, often enough for the dashboards' bars of a minute."""
    (monitor,) = objects("ServiceMonitor")
    assert monitor["spec"]["selector"]["matchLabels"] == {"app.kubernetes.io/name": "penstock"}
    (endpoint,) = monitor["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
    assert int(endpoint["interval"].removesuffix("s")) <= 30
