"""Priors by GPU type and model size: a roofline of one engine step, in seconds.

Both the scheduler (what to expect of a replica it has not seen work) and the simulated engine (what to be) read it from here.
Uncalibrated: coefficients come from data sheets and two efficiency factors, not from measurements of a GPU.
"""

from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml

# Shares of the data-sheet peak that serving kernels reach; middle of what vLLM and Sarathi-Serve report for dense models.
_FLOPS_EFFICIENCY = 0.5
_BANDWIDTH_EFFICIENCY = 0.8
_STEP_OVERHEAD_S = 0.002  # scheduler, launch and sampling of one engine step
_MEMORY_FOR_ENGINE = 0.9  # vLLM's default gpu_memory_utilization
_BYTES_PER_WEIGHT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuType:
    """One accelerator's data sheet."""

    name: str
    memory_bytes: float
    bandwidth_bytes_per_s: float
    flops_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """What a model costs per token: parameters, and the KV bytes one token leaves behind (2 x layers x kv_heads x head_dim x 2)."""

    params: float
    layers: int
    hidden: int
    kv_bytes_per_token: int


SHAPE_8B = ModelShape(
    params=8.03e9, layers=32, hidden=4096, kv_bytes_per_token=131_072
)  # Llama-3.1-8B: 8 KV heads of 128
SHAPE_70B = ModelShape(params=70.6e9, layers=80, hidden=8192, kv_bytes_per_token=327_680)  # Llama-3.1-70B


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModel:
    """Coefficients of one engine step's time on one replica; all seconds, `speed` already divided out."""

    weights_s: float  # reading the weights once
    token_s: float  # matrix multiplications, per token in the step
    attention_s: float  # per prefill token and token of its context: the quadratic term of long prompts
    kv_token_s: float  # reading one token's KV while decoding
    overhead_s: float = _STEP_OVERHEAD_S

    def step_s(
        self, *, prefill_tokens: int = 0, prefill_context: int = 0, decode_seqs: int = 0, kv_tokens: int = 0
    ) -> float:
        """One step over `prefill_tokens` new tokens (ending at `prefill_context`) and `decode_seqs` sequences holding `kv_tokens`."""
        compute = self.token_s * (prefill_tokens + decode_seqs)
        attention = self.attention_s * prefill_tokens * max(prefill_context - prefill_tokens / 2, 0)
        return self.overhead_s + max(self.weights_s, compute) + attention + self.kv_token_s * kv_tokens

    def prefill_s(self, tokens: int, cached: int = 0) -> float:
        """Seconds the machine needs for a prompt's uncached part, linear plus quadratic, chunking aside."""
        new = max(tokens - cached, 0)
        return max(self.weights_s, self.token_s * new) + self.attention_s * new * (cached + new / 2)


def step_model(gpu: str, *, count: int = 1, speed: float = 1.0, shape: ModelShape = SHAPE_8B) -> StepModel:
    """The roofline of `count` GPUs of a type under tensor parallelism (communication neglected)."""
    g = gpu_type(gpu)
    flops = g.flops_per_s * _FLOPS_EFFICIENCY * count * speed
    bandwidth = g.bandwidth_bytes_per_s * _BANDWIDTH_EFFICIENCY * count * speed
    return StepModel(
        weights_s=shape.params * _BYTES_PER_WEIGHT / bandwidth,
        token_s=2 * shape.params / flops,
        attention_s=4
        * shape.layers
        * shape.hidden
        / flops,  # QK^T and PV: 2 FLOPs each per layer, hidden unit and context token
        kv_token_s=shape.kv_bytes_per_token / bandwidth,
        overhead_s=_STEP_OVERHEAD_S / speed,
    )


def kv_blocks(gpu: str, *, count: int = 1, block_size: int = 16, shape: ModelShape = SHAPE_8B) -> int:
    """KV blocks that fit beside the weights; at least 1."""
    free = gpu_type(gpu).memory_bytes * _MEMORY_FOR_ENGINE * count - shape.params * _BYTES_PER_WEIGHT
    return max(1, int(free // (shape.kv_bytes_per_token * block_size)))


def gpu_type(name: str) -> GpuType:
    """The row of config/gpus.yaml; the A100's for a type it does not know."""
    table = gpu_table()
    return table.get(name, table["A100-80G"])


@cache
def gpu_table() -> dict[str, GpuType]:
    """config/gpus.yaml, read once."""
    rows = yaml.safe_load(resources.files("config").joinpath("gpus.yaml").read_text("utf-8"))
    return {name: GpuType(name=name, **row) for name, row in rows.items()}
