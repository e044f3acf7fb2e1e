"""The section `spot`: how replicas that will be taken away are emptied (docs/spot.md)."""

from pydantic import Field, NonNegativeFloat, PositiveFloat

from config.section import Section


class Spot(Section):
    """What is done with a replica between a notice and its end. Seconds."""

    margin_s: NonNegativeFloat = Field(
        2.0, description="before a deadline, by when a replica is to be empty: what still runs then is moved at once"
    )
    rebalance_longest_s: PositiveFloat = Field(
        30.0,
        description="predicted run of new work for a replica that may soon be reclaimed; longer work goes elsewhere",
    )
