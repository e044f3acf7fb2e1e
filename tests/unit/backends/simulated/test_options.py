"""From a replica's section to the engine it runs, and to what the scheduler takes it for."""

from config.gpus import kv_blocks, step_model
from config.schema import ReplicaConfig
from router.engines import engine_options
from router.profiles import profile_of

SAID = {
    "name": "a",
    "backend": "simulated",
    "gpu": {"type": "A100-80G", "count": 4},
    "simulated": {"shape": "70b", "pipeline_parallel": 2, "memory_ratio": 0.95},
}


def test_engine_and_scheduler_reckon_with_the_same_machine():
    """Size and stages reach the engine's step times and its profile; memory ratio and size its KV cache."""
    replica = ReplicaConfig.model_validate(SAID)
    options, profile = engine_options(replica), profile_of(replica, None)
    model = step_model("A100-80G", count=4, shape="70b", pipeline=2)
    assert options.step_model() == model
    assert options.total_blocks == kv_blocks("A100-80G", count=4, shape="70b", memory_ratio=0.95)
    assert model == step_model(
        profile.gpu, count=profile.gpu_count, shape=profile.shape, pipeline=profile.pipeline_parallel
    )


def test_a_real_engine_has_no_simulated_size():
    """The section of a replica that is not simulated says nothing of it."""
    replica = ReplicaConfig.model_validate(SAID | {"backend": "vllm", "url": "http://h:1"})
    assert (profile_of(replica, None).shape, profile_of(replica, None).pipeline_parallel) == ("8b", 1)
