"""What a simulated engine is: its model name, its GPU and its limits, in vLLM's terms and with vLLM's meaning."""

from dataclasses import dataclass

from backends.simulated.speculation import Speculation
from config import gpus


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """Options of one simulated engine, embedded or served; every one has a default."""

    model: str = "sim-8b"
    gpu: str = "H100-80G"
    gpu_count: int = 1
    shape: gpus.ShapeName = "8b"  # the model's size
    pipeline_parallel: int = 1  # stages; tensor parallelism has the GPUs of one stage
    memory_ratio: float = gpus.MEMORY_RATIO  # vLLM's gpu_memory_utilization
    kv_blocks: int | None = None  # None: what fits beside the model's weights, from config.gpus
    block_size: int = 16
    max_num_seqs: int = 256  # vLLM's default for its server
    max_num_batched_tokens: int = 8192
    max_model_len: int = 32_768
    speed: float = 1.0  # 2 runs twice as fast as the GPU it models
    seed: int = 0  # 0: exact roofline times; else each step varies by a few percent, seeded. Never changes a token.
    speculative_tokens: int = 0  # drafted in each decode step of a sequence
    speculative_acceptance: float = (
        0.7  # chance that a draft is right, if those before it are; EAGLE's papers have 0.7 to 0.8
    )
    priority_scheduling: bool = False  # vLLM's --scheduling-policy priority
    max_queued: int = 4096  # requests waiting in the engine; 16 full batches, a gateway holds its queue itself

    @property
    def total_blocks(self) -> int:
        if self.kv_blocks is not None:
            return self.kv_blocks
        return gpus.kv_blocks(
            self.gpu,
            count=self.gpu_count,
            block_size=self.block_size,
            shape=self.shape,
            memory_ratio=self.memory_ratio,
        )

    @property
    def context_tokens(self) -> int:
        """Longest prompt plus output: a request must fit the KV cache alone, or it could never be finished."""
        return min(self.max_model_len, self.total_blocks * self.block_size)

    @property
    def speculation(self) -> Speculation | None:
        """None where nothing is drafted."""
        if not self.speculative_tokens:
            return None
        return Speculation(self.speculative_tokens, self.speculative_acceptance, self.seed)

    def step_model(self) -> gpus.StepModel:
        return gpus.step_model(
            self.gpu, count=self.gpu_count, speed=self.speed, shape=self.shape, pipeline=self.pipeline_parallel
        )
