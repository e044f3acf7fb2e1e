"""The section `health`: when a replica is doubted, how it is asked, how long it stays away (docs/health.md)."""

from typing import Self

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from config.checks import refusal
from config.section import Section


class Health(Section):
    """What makes a replica suspect although its own health page is fine, and what comes of it."""

    enabled: bool = Field(True, description="false: only looks and refused connections take a replica out of service")
    failures: PositiveInt = Field(
        5, description="attempts in a row that failed, or whose first byte came far too late, until it is suspect"
    )
    error_ratio: float = Field(0.5, gt=0, le=1, description="of the attempts of `error_window_s` that failed, likewise")
    error_window_s: PositiveFloat = 10.0
    error_attempts: PositiveInt = Field(20, description="fewer attempts in the window say nothing")
    silence_s: PositiveFloat = Field(
        1.0, description="streams without a byte for so long, or for longer than its steps and latest gaps explain"
    )
    token_timeout_s: PositiveFloat = Field(
        0.5, description="a suspect replica is asked for one token; slow ones get longer"
    )
    warming_timeout_s: PositiveFloat = Field(
        30.0, description="for the one token of a replica that comes back; its first request may compile"
    )
    pause_s: PositiveFloat = Field(1.0, description="until it is asked again; doubles with each failure")
    longest_pause_s: PositiveFloat = Field(
        30.0, description="and no longer; so long without a failure, the next pause is short again"
    )

    @model_validator(mode="after")
    def _pauses_grow(self) -> Self:
        if self.longest_pause_s < self.pause_s:
            text = f"{self.longest_pause_s:g} is shorter than pause_s, {self.pause_s:g}; pauses grow from the one to the other"
            raise refusal("health", [(("longest_pause_s",), text)])
        return self
