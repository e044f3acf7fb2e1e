"""What EndpointSlices and Nodes come to: replicas by pod, GPU and price by labels, notices by taints and endings."""

from typing import Any

import pytest

from backends.discovery.found import Warned
from backends.discovery.nodes import gpu_type
from backends.discovery.slices import found_in
from config.discovery import Kubernetes, Template
from config.replica import CostTier
from tests.support.fake_kubernetes import endpoint, endpoint_slice, node

H100 = {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3", "karpenter.sh/capacity-type": "spot"}


def source(**settings: Any) -> Kubernetes:
    return Kubernetes.model_validate({"service": "vllm", **settings})


def test_a_pod_is_a_replica_with_what_its_node_says():
    """Its name, the slice's port, GPU type and tier by labels."""
    pieces = [endpoint_slice("vllm-a", "vllm", endpoint("10.0.0.7", "vllm-0", "n1"), endpoint("10.0.0.8", "vllm-1"))]
    labels = {**H100, "penstock.dev/usd-per-hour": "1.25", "penstock.dev/gpu-count": "2"}
    seen = found_in(pieces, {"n1": node("n1", labels)}, source())
    first, second = (found.replica for found in seen.found)
    assert (first.name, first.url) == ("vllm-0", "http://10.0.0.7:8000")
    assert (first.gpu.type, first.gpu.count) == ("H100-80G", 2)
    assert (first.cost.tier, first.cost.usd_per_hour) == (CostTier.SPOT, 1.25)
    assert (second.gpu.type, second.cost.tier) == ("unknown", CostTier.ON_DEMAND)
    assert seen.problems == frozenset()


def test_what_the_configuration_says_wins_over_labels():
    """Field by field."""
    template = {"gpu": {"type": "A100-80G"}, "cost": {"usd_per_hour": 3}}
    labels = {**H100, "penstock.dev/usd-per-hour": "9"}
    pieces = [endpoint_slice("a", "vllm", endpoint("10.0.0.7", "p", "n1"))]
    (found,) = found_in(pieces, {"n1": node("n1", labels)}, source(replica=template)).found
    assert (found.replica.gpu.type, found.replica.cost.usd_per_hour) == ("A100-80G", 3)
    assert found.replica.cost.tier is CostTier.SPOT


@pytest.mark.parametrize(
    ("product", "name"),
    [
        ("NVIDIA-H100-80GB-HBM3", "H100-80G"),
        ("NVIDIA-A100-SXM4-40GB", "A100-40G"),
        ("NVIDIA-A100-SXM4-80GB", "A100-80G"),
        ("NVIDIA-H200", "H200-141G"),
        ("Tesla-V100-SXM2-16GB", "V100-16G"),
        ("NVIDIA-L4", "L4-24G"),
        ("NVIDIA-L40S", "L40S-48G"),
        ("NVIDIA-A10G", None),
        ("Radeon", None),
    ],
)
def test_products_are_the_types_that_we_have_priors_for(product: str, name: str | None):
    """By whole words: an L40S is no L4, an A10G no A10."""
    assert gpu_type(product) == name


@pytest.mark.parametrize(
    ("taints", "kind", "within_s"),
    [
        (["aws-node-termination-handler/spot-itn"], "reclaim", 120),
        (["cloud.google.com/impending-node-termination"], "reclaim", 120),
        (["ToBeDeletedByClusterAutoscaler"], "maintenance", None),
        (["aws-node-termination-handler/rebalance-recommendation"], "rebalance", None),
        (["aws-node-termination-handler/rebalance-recommendation", "karpenter.sh/disrupted"], "maintenance", None),
        (["nvidia.com/gpu"], None, None),
    ],
)
def test_taints_are_notices(taints: list[str], kind: str | None, within_s: float | None):
    """The gravest counts; what only keeps other pods away is none."""
    pieces = [endpoint_slice("a", "vllm", endpoint("10.0.0.7", "p", "n1"))]
    (found,) = found_in(pieces, {"n1": node("n1", {}, *taints)}, source()).found
    assert (None if found.warned is None else (found.warned.kind, found.warned.within_s)) == (
        None if kind is None else (kind, within_s)
    )


def test_a_pod_that_ends_is_reclaimed_within_its_grace():
    """EndpointSlices say so before the pod is gone; the node's own notice is not waited for."""
    ending = endpoint("10.0.0.7", "p", "n1", ready=False, terminating=True)
    nodes = {"n1": node("n1", {}, "ToBeDeletedByClusterAutoscaler")}
    (found,) = found_in([endpoint_slice("a", "vllm", ending)], nodes, source(termination_grace_s=60)).found
    assert found.warned == Warned("reclaim", "uid-p/terminating", 60.0)


def test_what_is_wrong_is_said_and_the_rest_is_found():
    """A slice without the port, a label that means nothing, a metadata service's address, an endpoint without one."""
    pieces = [
        endpoint_slice("a", "vllm", endpoint("10.0.0.7", "p", "n1"), port_name="metrics"),
        endpoint_slice(
            "b", "vllm", endpoint("10.0.0.8", "q", "n1"), {"addresses": []}, endpoint("169.254.169.254", "r")
        ),
    ]
    labels = {"penstock.dev/cost-tier": "cheap", "penstock.dev/gpu-count": "many", "penstock.dev/usd-per-hour": "-1"}
    seen = found_in(pieces, {"n1": node("n1", labels)}, source(port="http"))
    assert [found.replica.name for found in seen.found] == ["q"]
    told = "\n".join(sorted(seen.problems))
    for word in (
        "a has no port http; it has metrics=8000",
        "cost-tier=cheap",
        "gpu-count=many",
        "usd-per-hour=-1",
        "169.254",
    ):
        assert word in told
    assert len(seen.problems) == 5


def test_a_pod_in_two_slices_is_one_replica_and_long_names_are_cut():
    """As while it goes from one slice to another; names have at most 63 characters, and their ends tell pods apart."""
    pod = "x" * 60 + "-7d9f8-abcde"
    pieces = [
        endpoint_slice("a", "vllm", endpoint("10.0.0.7", pod)),
        endpoint_slice("b", "vllm", endpoint("fd00::7", pod)),
        endpoint_slice("c", "vllm", {"addresses": ["fd00::9"], "conditions": {}}),
    ]
    seen = found_in(pieces, {}, source())
    assert [found.replica.url for found in seen.found] == ["http://[fd00::9]:8000", "http://10.0.0.7:8000"]
    assert seen.found[1].replica.name.endswith("-7d9f8-abcde")
    assert len(seen.found[1].replica.name) == 63


def test_triton_and_tls():
    """GRPC addresses, and metrics at their own port."""
    template = {"backend": "triton", "models": ["m"], "metrics_port": 8002, "tls": True}
    (found,) = found_in(
        [endpoint_slice("a", "v", endpoint("10.0.0.7", "p"), port=8001)], {}, source(replica=template)
    ).found
    assert (found.replica.url, found.replica.metrics_url) == ("grpcs://10.0.0.7:8001", "http://10.0.0.7:8002/metrics")
    assert Template().backend == "vllm"


def test_replicas_may_be_called_after_their_nodes():
    """For an agent that knows no more of an engine than the node that both are on."""
    pieces = [endpoint_slice("a", "vllm", endpoint("10.0.0.7", "p", "gpu-1"), endpoint("10.0.0.8", "q"))]
    seen = found_in(pieces, {}, source(named_by="node", prefix="spot"))
    assert [found.replica.name for found in seen.found] == ["spot-10-0-0-8", "spot-gpu-1"]


def test_kv_events_are_heard_at_each_pods_own_address():
    """By the ports that the template says."""
    template = {"kv_events_port": 5557, "kv_replay_port": 5558}
    (found,) = found_in([endpoint_slice("a", "v", endpoint("10.0.0.7", "p"))], {}, source(replica=template)).found
    events = found.replica.kv_events
    assert events is not None
    assert (events.endpoint, events.replay_endpoint) == ("tcp://10.0.0.7:5557", "tcp://10.0.0.7:5558")
