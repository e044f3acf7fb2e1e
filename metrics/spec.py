"""What the catalog says of an instrument beside its name, and the label sets that many of them share."""

from dataclasses import dataclass
from typing import Final

PREFIX: Final = "penstock_"
CLASS: Final = ("model", "service_tier")
MACHINE: Final = ("replica", "gpu", "cost_tier")
STREAM: Final = (*CLASS, *MACHINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """What an instrument needs beyond its name."""

    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] | None = None
    prefix: str = PREFIX
