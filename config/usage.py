"""The section `usage`: how far back `GET /admin/usage` can tell who used what (docs/cost.md)."""

from pydantic import Field

from config.section import Section


class Usage(Section):
    """Kept in memory, of all workers together, and gone with the process: Prometheus keeps longer histories."""

    hours: int = Field(48, ge=1, le=24 * 31, description="the last ones, hour by hour")
    days: int = Field(31, ge=1, le=366, description="the last ones, day by day (UTC)")
    max_groups: int = Field(
        2000,
        ge=10,
        le=100_000,
        description="of tenant, model, service tier and replica, in each hour and day; further tenants are counted as `other`",
    )
