"""The roofline's priors: what more GPUs, larger models and pipelines do to a step's time, and what memory is left."""

import pytest

from config.gpus import GpuType, StepModel, gpu_table, gpu_type, kv_blocks, step_model


def test_every_row_is_complete():
    """Each GPU has a positive figure in every column; an unknown one takes the A100's."""
    for row in gpu_table().values():
        assert min(row.memory_bytes, row.bandwidth_bytes_per_s, row.flops_per_s, row.link_bytes_per_s) > 0
    assert gpu_type("from-next-year") == gpu_table()["A100-80G"]


def test_one_gpu_sends_nothing():
    """Alone there is no transfer: the figures are the plain roofline's."""
    gpu: GpuType = gpu_type("H100-80G")
    assert step_model("H100-80G") == StepModel(
        weights_s=8.03e9 * 2 / (gpu.bandwidth_bytes_per_s * 0.8),
        token_s=2 * 8.03e9 / (gpu.flops_per_s * 0.5),
        attention_s=4 * 32 * 4096 / (gpu.flops_per_s * 0.5),
        kv_token_s=131_072 / (gpu.bandwidth_bytes_per_s * 0.8),
    )


@pytest.mark.parametrize(
    ("gpu", "slower_link"),
    [("A100-80G", "L4-24G"), ("H100-80G", "L40S-48G")],
)
def test_tensor_parallelism_divides_work_and_pays_transfers(gpu: str, slower_link: str):
    """Two GPUs are faster than one and slower than twice as fast; over PCIe the transfers weigh more."""

    def gain(gpu: str) -> float:
        one, two = (step_model(gpu, count=count).step_s(prefill_tokens=4096, prefill_context=4096) for count in (1, 2))
        return one / two

    assert 1 < gain(slower_link) < gain(gpu) < 2


def test_transfers_are_not_hidden_by_the_weights():
    """A step that waits for memory still pays two all-reduces a layer: bytes over the link, and latency."""
    two = step_model("A100-80G", count=2, shape="70b")
    reduces, ring = 2 * 80, 2 * (2 - 1) / 2
    sent_s = reduces * ring * 8192 * 2 / (gpu_type("A100-80G").link_bytes_per_s * 0.8)
    assert two.step_s(decode_seqs=8) == pytest.approx(0.002 + reduces * 10e-6 + two.weights_s + 8 * sent_s)


def test_a_pipeline_serves_more_and_answers_no_sooner():
    """Two stages read the weights one after the other, so a token takes as long as on one; a full pipeline computes twice as much."""
    one, two = step_model("A100-80G"), step_model("A100-80G", count=2, pipeline=2)
    assert two.weights_s == pytest.approx(one.weights_s)
    assert two.step_s(decode_seqs=1) == pytest.approx(one.step_s(decode_seqs=1), rel=0.01)
    lone = {"prefill_tokens": 4096, "prefill_context": 4096}
    assert two.step_s(**lone) == pytest.approx(one.step_s(**lone), rel=0.01)
    full = {"prefill_tokens": 8192, "sequences": 8}
    assert two.step_s(**full) == pytest.approx(one.step_s(**full) / 2, rel=0.02)


def test_speed_divides_everything():
    """A machine twice as fast takes half the time for any step, transfers included."""
    step = {"prefill_tokens": 300, "prefill_context": 900, "decode_seqs": 40, "kv_tokens": 40_000}
    slow = step_model("L4-24G", count=4, pipeline=2).step_s(**step)
    assert step_model("L4-24G", count=4, pipeline=2, speed=2.0).step_s(**step) == pytest.approx(slow / 2)


@pytest.mark.parametrize(
    ("gpu", "count", "shape", "memory_ratio", "tokens"),
    [
        ("A100-80G", 2, "70b", 0.95, 32_944),  # 152 GB less 141.2 GB of weights, 320 KiB a token
        ("A100-80G", 1, "8b", 0.9, 426_784),
        ("V100-16G", 1, "8b", 0.9, 16),  # the weights alone do not fit
    ],
)
def test_kv_memory_is_what_the_weights_leave(gpu: str, count: int, shape: str, memory_ratio: float, tokens: int):
    """KV tokens beside a model's weights, in blocks of 16; at least one block."""
    assert kv_blocks(gpu, count=count, shape=shape, memory_ratio=memory_ratio) * 16 == tokens  # type: ignore[arg-type]
