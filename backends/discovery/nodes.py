"""What Kubernetes nodes say of the machines they are: GPU, cost tier and price by their labels, notices by their taints (pure).

Labels `penstock.dev/*` are ours, for whatever clouds do not tell; the others are those that clouds and node agents set themselves.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from backends.discovery.found import Warned
from config.discovery import Template
from config.gpus import gpu_table
from config.replica import Cost, CostTier, Gpu

GPU_TYPE: Final = "penstock.dev/gpu-type"
GPU_COUNT: Final = "penstock.dev/gpu-count"
TIER: Final = "penstock.dev/cost-tier"
PRICE: Final = "penstock.dev/usd-per-hour"
_PRODUCT: Final = "nvidia.com/gpu.product"  # of NVIDIA's feature discovery: NVIDIA-H100-80GB-HBM3

# (label, value, tier), of AWS (EKS, Karpenter), GCP (GKE) and Azure (AKS), by their documentation.
_TIERS: Final = (
    ("karpenter.sh/capacity-type", "spot", CostTier.SPOT),
    ("karpenter.sh/capacity-type", "reserved", CostTier.RESERVED),
    ("karpenter.sh/capacity-type", "on-demand", CostTier.ON_DEMAND),
    ("eks.amazonaws.com/capacityType", "SPOT", CostTier.SPOT),
    ("eks.amazonaws.com/capacityType", "CAPACITY_BLOCK", CostTier.RESERVED),
    ("eks.amazonaws.com/capacityType", "ON_DEMAND", CostTier.ON_DEMAND),
    ("cloud.google.com/gke-spot", "true", CostTier.SPOT),
    ("cloud.google.com/gke-preemptible", "true", CostTier.SPOT),
    ("kubernetes.azure.com/scalesetpriority", "spot", CostTier.SPOT),
)
# (taint's key, kind, whether the cloud's spot notice period holds). Of node termination handlers and autoscalers.
_TAINTS: Final = (
    ("aws-node-termination-handler/spot-itn", "reclaim", True),
    ("cloud.google.com/impending-node-termination", "reclaim", True),
    ("aws-node-termination-handler/asg-lifecycle-termination", "maintenance", False),
    ("aws-node-termination-handler/scheduled-maintenance", "maintenance", False),
    ("ToBeDeletedByClusterAutoscaler", "maintenance", False),
    ("karpenter.sh/disrupted", "maintenance", False),
    ("node.kubernetes.io/out-of-service", "maintenance", False),
    ("aws-node-termination-handler/rebalance-recommendation", "rebalance", False),
)


def with_labels(template: Template, labels: Mapping[str, str]) -> tuple[Template, list[str]]:
    """(the template with what it leaves out as the labels say, labels that say nothing we understand)."""
    gpu, gpu_wrong = _gpu(template.gpu, labels)
    cost, cost_wrong = _cost(template.cost, labels)
    return template.model_copy(update={"gpu": gpu, "cost": cost}), [*gpu_wrong, *cost_wrong]


def warned(taints: Iterable[Mapping[str, Any]], node: str, notice_s: float) -> Warned | None:
    """The gravest that the node's taints say; None: it stays."""
    keys = {str(taint.get("key")) for taint in taints}
    for key, kind, is_spot in _TAINTS:
        if key in keys:
            return Warned(kind, f"{node}/{key}", notice_s if is_spot else None)
    return None


def gpu_type(product: str) -> str | None:
    """The name in gpus.yaml of NVIDIA's product name; None: none of them."""
    words = product.upper().replace("_", "-").split("-")
    memory = next((word.removesuffix("GB") for word in words if word.endswith("GB")), "")
    known = sorted(gpu_table(), key=len, reverse=True)
    same = [name for name in known if name.split("-")[0].upper() in words]
    exact = [name for name in same if name.split("-")[-1] == f"{memory}G"]
    return next(iter(exact or same), None)


def _gpu(said: Gpu, labels: Mapping[str, str]) -> tuple[Gpu, list[str]]:
    wrong: list[str] = []
    changes: dict[str, Any] = {}
    if "type" not in said.model_fields_set:
        told = labels.get(GPU_TYPE)
        if told is None and (product := labels.get(_PRODUCT)) is not None:
            told = gpu_type(product)
            if told is None:
                wrong.append(f"{_PRODUCT}={product}")
        if told is not None:
            changes["type"] = told
    if "count" not in said.model_fields_set and (count := labels.get(GPU_COUNT)) is not None:
        if count.isdigit() and int(count) > 0:
            changes["count"] = int(count)
        else:
            wrong.append(f"{GPU_COUNT}={count}")
    return said.model_copy(update=changes), wrong


def _cost(said: Cost, labels: Mapping[str, str]) -> tuple[Cost, list[str]]:
    wrong: list[str] = []
    changes: dict[str, Any] = {}
    if "tier" not in said.model_fields_set:
        told = labels.get(TIER)
        if told is not None and told not in set(CostTier):
            wrong.append(f"{TIER}={told}")
            told = None
        tier = told or next((tier for label, value, tier in _TIERS if labels.get(label) == value), None)
        if tier is not None:
            changes["tier"] = CostTier(tier)
    if "usd_per_hour" not in said.model_fields_set and (price := labels.get(PRICE)) is not None:
        try:
            changes["usd_per_hour"] = Cost(usd_per_hour=float(price)).usd_per_hour
        except ValueError:  # of float, and of pydantic for what is no price
            wrong.append(f"{PRICE}={price}")
    return said.model_copy(update=changes), wrong
