"""`/metrics/vllm` beside the page of a real vLLM: every name, type and label of ours is one of its own."""

import httpx
import pytest
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.parser import text_string_to_metric_families

from metrics.aliases import ALIASES, Engines, FleetAsEngine
from metrics.exposition import render
from metrics.pages import Page
from tests.real.vllm_server import MODEL, VllmServer
from tests.support.patience import PATIENCE_S

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def theirs(vllm_pair: tuple[VllmServer, VllmServer]) -> dict[str, Metric]:
    """A real engine's page after one request, by family."""
    engine = vllm_pair[0]
    httpx.post(
        f"{engine.url}/v1/completions", json={"model": MODEL, "prompt": "The gate", "max_tokens": 4}, timeout=PATIENCE_S
    )
    text = httpx.get(f"{engine.url}/metrics", timeout=PATIENCE_S).text
    return {family.name: family for family in text_string_to_metric_families(text)}


def ours() -> dict[str, Metric]:
    registry = CollectorRegistry()
    engine = Engines(kv_blocks=1, block_size=16)
    registry.register(FleetAsEngine(Page({}, {}, {}), {MODEL: engine}, engine))
    text = render(registry)[0].decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def test_every_alias_is_a_name_of_vllm_s(theirs: dict[str, Metric]):
    """Under the same type: a dashboard that was written for vLLM finds what it asks for."""
    found = ours()
    assert len(found) == len(ALIASES)
    assert {name: family.type for name, family in found.items()} == {
        name: theirs[name].type if name in theirs else "vLLM has none" for name in found
    }


def test_every_label_is_one_of_vllm_s(theirs: dict[str, Metric]):
    """And has its values: the engine is "0", reasons are its own."""
    for name, family in ours().items():
        labels = {label for sample in family.samples for label in sample.labels}
        assert labels <= {label for sample in theirs[name].samples for label in sample.labels}, name
        samples = theirs[name].samples
        if name != "vllm:cache_config_info":
            assert {"model_name", "engine"} <= labels
            assert {sample.labels["engine"] for sample in samples} == {"0"}
    reasons = [
        {sample.labels["finished_reason"] for sample in page["vllm:request_success"].samples}
        for page in (ours(), theirs)
    ]
    assert reasons[0] == reasons[1]


@pytest.mark.parametrize(
    "name", ["vllm:time_to_first_token_seconds", "vllm:inter_token_latency_seconds", "vllm:e2e_request_latency_seconds"]
)
def test_latencies_have_vllm_s_buckets(theirs: dict[str, Metric], name: str):
    """So that quantiles of the fleet and of an engine can stand in one graph."""
    bounds = [
        {float(sample.labels["le"]) for sample in page[name].samples if "le" in sample.labels}
        for page in (ours(), theirs)
    ]
    assert bounds[0] == bounds[1]
