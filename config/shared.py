"""The section `redis`: several gateways that share one fleet, and what each keeps when Redis cannot be reached (docs/gateways.md)."""

from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from config.checks import Problem, refusal
from config.section import Section

_SCHEMES = ("redis", "rediss", "unix")
_EXAMPLE = "write redis://host:6379/0, rediss:// for TLS, or unix:///run/redis.sock"


class Sentinel(Section):
    """Where Sentinels are asked which Redis is the master."""

    master: str = Field(min_length=1, description="its name, as in `sentinel monitor NAME ...`")
    nodes: tuple[str, ...] = Field(min_length=1, description="host:port of each Sentinel")
    password: str | None = Field(None, repr=False, description="of the Sentinels; `env:NAME` or `file:/path`")


class SharedRedis(Section):
    """One fleet, several gateways. Off without `url` or `sentinel`."""

    url: str | None = Field(
        None, description="redis://host:6379/0, rediss://... or unix:///path; null: this gateway is alone"
    )
    sentinel: Sentinel | None = Field(None, description="instead of `url`")
    cluster: bool = Field(False, description="`url` is one node of a Redis Cluster")
    username: str | None = None
    password: str | None = Field(None, repr=False, description="`env:NAME` or `file:/path` keep it out of this file")
    prefix: str = Field(
        "penstock:default",
        pattern=r"^[^{}\s]{1,200}$",
        description="of all keys: one a fleet; gateways with the same one share",
    )
    name: str | None = Field(
        None,
        pattern=r"^[^\s/]{1,120}$",
        description="of this gateway, unlike any other's; it takes over what its predecessor of the same name held. null: host name and port",
    )
    lease_s: PositiveFloat = Field(
        1.5, le=60, description="without an answer for so long, a gateway keeps no more than its static share"
    )
    settle_s: PositiveFloat = Field(
        1.0,
        le=60,
        description="after that, until others are given the rest: what still runs shows in the engines' figures by then. Not less than probe.interval_s",
    )
    static_share_ratio: float = Field(
        0.125,
        ge=0,
        le=1,
        description="of each replica, that a gateway keeps beyond its lease, if it had so much; of each tenant's limit, that it lets in then",
    )
    forget_s: PositiveFloat = Field(
        1800.0, description="silent for so long, a gateway places nothing more, and its static share is everybody's"
    )
    timeout_s: PositiveFloat = Field(0.5, description="for one call; not more than lease_s")
    wait_replicas: NonNegativeInt = Field(
        0,
        description="replicas of Redis that must have a report before it counts (WAIT): no split brain renews a lease",
    )

    @property
    def enabled(self) -> bool:
        return self.url is not None or self.sentinel is not None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = [*self._address_problems(), *self._time_problems()]
        if problems:
            raise refusal("redis", problems)
        return self

    def _address_problems(self) -> list[Problem]:
        found: list[Problem] = []
        if self.url is not None:
            if self.sentinel is not None:
                found.append((("url",), "given beside sentinel, which says where the master is; keep one of the two"))
            text = _address_problem(self.url)
            if text:
                found.append((("url",), text))
        for index, node in enumerate(self.sentinel.nodes if self.sentinel is not None else ()):
            host, _, port = node.rpartition(":")
            if not host or not port.isdigit() or not 0 < int(port) < 65536:
                found.append((("sentinel", "nodes", index), f"{node!r} is no host:port, such as sentinel-0:26379"))
        if self.cluster and self.url is None:
            found.append((("cluster",), "needs `url`, of one of its nodes; a cluster has no Sentinels"))
        if self.cluster and self.wait_replicas:
            text = "cannot be asked of a cluster; set min-replicas-to-write 1 on its nodes instead"
            found.append((("wait_replicas",), text))
        return found

    def _time_problems(self) -> list[Problem]:
        found: list[Problem] = []
        if self.timeout_s > self.lease_s:
            text = f"{self.timeout_s:g} is longer than lease_s, {self.lease_s:g}: a call could outlast what it renews"
            found.append((("timeout_s",), text))
        if self.forget_s < 2 * (self.lease_s + self.settle_s):
            text = f"{self.forget_s:g} is less than twice lease_s and settle_s together, {2 * (self.lease_s + self.settle_s):g}"
            found.append(
                (("forget_s",), f"{text}; give longer than the longest outage of Redis that is to be ridden out")
            )
        return found


def _address_problem(url: str) -> str | None:
    """Why this is no Redis; never shows what may be a password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return f"has a bad host or port; {_EXAMPLE}"
    if parts.username is not None or parts.password is not None:
        return "carries a user or password; put them in `username` and `password` (env:NAME or file:/path)"
    if parts.scheme not in _SCHEMES:
        return f"{url!r} is no Redis address; {_EXAMPLE}"
    if parts.scheme == "unix":
        return None if parts.path.startswith("/") and not parts.netloc else f"{url!r} is no Unix socket; {_EXAMPLE}"
    if not parts.hostname or port == 0:
        return f"{url!r} has no host, or port 0; {_EXAMPLE}"
    return None
