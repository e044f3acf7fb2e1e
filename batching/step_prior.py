"""What is assumed of a replica's engine steps before anything was seen of them: its GPUs' priors, as far as they are to count."""

from dataclasses import replace

from batching.replica import ReplicaProfile
from config.gpus import StepModel, step_model
from config.schema import Mechanism


def step_prior(profile: ReplicaProfile, without: frozenset[Mechanism]) -> StepModel:
    if Mechanism.SPEED in without:
        step = step_model("unknown")
    else:
        step = step_model(
            profile.gpu,
            count=profile.gpu_count,
            speed=profile.speed,
            shape=profile.shape,
            pipeline=profile.pipeline_parallel,
        )
    return replace(step, attention_s=0.0) if Mechanism.ATTENTION in without else step
