"""Priors by GPU type and model size: a roofline of one engine step, in seconds.

Both the scheduler (what to expect of a replica it has not seen work) and the simulated engine (what to be) read it from here.
Uncalibrated: coefficients come from data sheets and two efficiency factors, not from measurements of a GPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import yaml

# Shares of the data-sheet peak that serving kernels reach; middle of what vLLM and Sarathi-Serve report for dense models.
_FLOPS_EFFICIENCY = 0.5
_BANDWIDTH_EFFICIENCY = 0.8
_STEP_OVERHEAD_S = 0.002  # scheduler, launch and sampling of one engine step
MEMORY_RATIO = 0.9  # vLLM's default gpu_memory_utilization
_BYTES_PER_WEIGHT = 2
_BYTES_PER_ACTIVATION = 2
_REDUCES_PER_LAYER = 2  # tensor parallelism sums partial results after attention and after the MLP (Megatron-LM)
_TRANSFER_LATENCY_S = (
    10e-6  # of one collective or hop, however small: what NCCL and vLLM's own all-reduce take to start
)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuType:
    """One accelerator's data sheet."""

    name: str
    memory_bytes: float
    bandwidth_bytes_per_s: float
    flops_per_s: float
    link_bytes_per_s: float  # what one GPU sends to others of its machine, one way


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
ShapeName = Literal["8b", "70b"]
SHAPES: Mapping[ShapeName, ModelShape] = {"8b": SHAPE_8B, "70b": SHAPE_70B}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepModel:
    """Coefficients of one engine step's time on one replica; all seconds, `speed` already divided out."""

    weights_s: float  # reading the weights once
    token_s: float  # matrix multiplications and transfers, per token in the step
    attention_s: float  # per prefill token and token of its context: the quadratic term of long prompts
    kv_token_s: float  # reading one token's KV while decoding
    overhead_s: float = _STEP_OVERHEAD_S
    transfer_token_s: float = 0.0  # the transfers' part of token_s, which no reading of weights hides
    stages: int = 1  # of the pipeline; the coefficients per token are those of a full one

    def step_s(
        self,
        *,
        prefill_tokens: int = 0,
        prefill_context: int = 0,
        decode_seqs: int = 0,
        kv_tokens: int = 0,
        attention_pairs: float = 0.0,
        sequences: int | None = None,
    ) -> float:
        """One step over `prefill_tokens` new tokens (ending at `prefill_context`) and `decode_seqs` sequences holding `kv_tokens`.

        Where chunks of many prompts meet, `attention_pairs` sums their (token, context token) pairs. `sequences` share the step
        (None: those that decode, and one that is prefilled); fewer than there are stages leave stages idle.
        """
        tokens = prefill_tokens + decode_seqs
        weights_s, compute = self.weights_s, (self.token_s - self.transfer_token_s) * tokens
        attention = self.attention_s * prefill_tokens * max(prefill_context - prefill_tokens / 2, 0)
        kv_s, more_attention = self.kv_token_s * kv_tokens, self.attention_s * attention_pairs
        transfer = self.transfer_token_s * tokens
        if self.stages == 1:
            return self.overhead_s + max(weights_s, compute) + attention + kv_s + more_attention + transfer
        if sequences is None:
            sequences = decode_seqs + (prefill_tokens > 0)
        slower = self.stages / min(self.stages, max(sequences, 1))
        parallel = attention + kv_s + more_attention + transfer
        return self.overhead_s + max(weights_s, slower * compute) + slower * parallel

    def prefill_s(self, tokens: int, cached: int = 0) -> float:
        """Seconds the machine needs for a prompt's uncached part, linear plus quadratic, chunking aside."""
        new = max(tokens - cached, 0)
        return max(self.weights_s, self.token_s * new) + self.attention_s * new * (cached + new / 2)


def step_model(
    gpu: str, *, count: int = 1, speed: float = 1.0, shape: ShapeName = "8b", pipeline: int = 1
) -> StepModel:
    """The roofline of `count` GPUs of a type: `pipeline` stages of count / pipeline GPUs under tensor parallelism each.

    Tensor parallelism divides all work and pays two all-reduces a layer, of the activations of every token: a ring sends
    2 (n - 1) / n of them over each GPU's link. A pipeline is counted as vLLM runs it, with one micro-batch a stage: a sequence's
    next token has passed all stages in sequence, each reading its share of the weights, so `weights_s` is not divided; compute,
    attention and KV are, because the stages work on different sequences meanwhile. Bubbles of uneven micro-batches are neglected.
    """
    g, model = gpu_type(gpu), SHAPES[shape]
    tensor = count // pipeline
    flops = g.flops_per_s * _FLOPS_EFFICIENCY * count * speed
    bandwidth = g.bandwidth_bytes_per_s * _BANDWIDTH_EFFICIENCY * count * speed
    reduces = _REDUCES_PER_LAYER * model.layers if tensor > 1 else 0
    hops = pipeline - 1
    sent_bytes = (reduces * 2 * (tensor - 1) / tensor + hops) * model.hidden * _BYTES_PER_ACTIVATION
    transfer_token_s = sent_bytes / (g.link_bytes_per_s * _BANDWIDTH_EFFICIENCY * pipeline * speed)
    return StepModel(
        weights_s=pipeline * (model.params * _BYTES_PER_WEIGHT / bandwidth),
        token_s=2 * model.params / flops + transfer_token_s,
        # QK^T and PV: 2 FLOPs each per layer, hidden unit and context token
        attention_s=4 * model.layers * model.hidden / flops,
        kv_token_s=model.kv_bytes_per_token / bandwidth,
        overhead_s=(_STEP_OVERHEAD_S + (reduces + hops) * _TRANSFER_LATENCY_S) / speed,
        transfer_token_s=transfer_token_s,
        stages=pipeline,
    )


def kv_blocks(
    gpu: str,
    *,
    count: int = 1,
    block_size: int = 16,
    shape: ShapeName = "8b",
    memory_ratio: float = MEMORY_RATIO,
) -> int:
    """KV blocks that fit beside the weights in `memory_ratio` of all GPUs' memory; at least 1."""
    free = kv_bytes(gpu, count=count, shape=shape, memory_ratio=memory_ratio)
    return max(1, int(free // (SHAPES[shape].kv_bytes_per_token * block_size)))


def kv_bytes(gpu: str, *, count: int, shape: ShapeName, memory_ratio: float) -> float:
    """What the weights leave of that memory; negative where they do not fit."""
    return gpu_type(gpu).memory_bytes * memory_ratio * count - SHAPES[shape].params * _BYTES_PER_WEIGHT


def gpu_type(name: str) -> GpuType:
    """The row of config/gpus.yaml; the A100's for a type it does not know."""
    table = gpu_table()
    return table.get(name, table["A100-80G"])


@cache
def gpu_table() -> dict[str, GpuType]:
    """config/gpus.yaml, read once."""
    rows = yaml.safe_load(resources.files("config").joinpath("gpus.yaml").read_text("utf-8"))
    return {name: GpuType(name=name, **row) for name, row in rows.items()}
