"""Which Redis, and the section `redis`: several gateways that share one fleet, and what each keeps when Redis cannot be reached (docs/gateways.md)."""

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


class RedisServer(Section):
    """Where a Redis is, and under which name a fleet goes there. Off without `url` or `sentinel`."""

    url: str | None = Field(None, description="redis://host:6379/0, rediss://... or unix:///path; null: none")
    sentinel: Sentinel | None = Field(None, description="instead of `url`")
    cluster: bool = Field(False, description="`url` is one node of a Redis Cluster")
    cluster_nodes: tuple[str, ...] = Field(
        (), description="host:port of others, which are asked, too, when the first connection is made"
    )
    username: str | None = None
    password: str | None = Field(None, repr=False, description="`env:NAME` or `file:/path` keep it out of this file")
    prefix: str = Field(
        "penstock:default",
        pattern=r"^[^{}\s]{1,200}$",
        description="of all keys: one a fleet; gateways with the same one share",
    )
    timeout_s: PositiveFloat = Field(2.0, description="for one call")
    wait_replicas: NonNegativeInt = Field(
        0, description="replicas of Redis that must have what is written before it counts (WAIT)"
    )

    @property
    def enabled(self) -> bool:
        return self.url is not None or self.sentinel is not None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        problems = [*_address_problems(self), *self._more_problems()]
        if problems:
            raise refusal("redis", problems)
        return self

    def _more_problems(self) -> list[Problem]:
        return []


class SharedRedis(RedisServer):
    """One fleet, several gateways. Off without `url` or `sentinel`."""

    name: str | None = Field(
        None,
        pattern=r"^[^\s/]{1,120}$",
        description="of this gateway, unlike any other's; it takes over what its predecessor of the same name held. null: host name and port",
    )
    share_prefixes: bool = Field(
        True, description="tell each other which replica was given which beginnings of prompts, by hashes"
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

    def _more_problems(self) -> list[Problem]:
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


def _address_problems(redis: RedisServer) -> list[Problem]:
    found: list[Problem] = []
    if redis.url is not None:
        if redis.sentinel is not None:
            found.append((("url",), "given beside sentinel, which says where the master is; keep one of the two"))
        text = _address_problem(redis.url)
        if text:
            found.append((("url",), text))
    sentinels = redis.sentinel.nodes if redis.sentinel is not None else ()
    for index in _no_addresses(sentinels):
        text = f"{sentinels[index]!r} is no host:port, such as sentinel-0:26379"
        found.append((("sentinel", "nodes", index), text))
    for index in _no_addresses(redis.cluster_nodes):
        text = f"{redis.cluster_nodes[index]!r} is no host:port, such as redis-1:6379"
        found.append((("cluster_nodes", index), text))
    if redis.cluster_nodes and not redis.cluster:
        found.append((("cluster_nodes",), "these are of a cluster, and `cluster` is false; set it, or remove them"))
    if redis.cluster and redis.url is None:
        found.append((("cluster",), "needs `url`, of one of its nodes; a cluster has no Sentinels"))
    if redis.cluster and redis.wait_replicas:
        text = "cannot be asked of a cluster; set min-replicas-to-write 1 on its nodes instead"
        found.append((("wait_replicas",), text))
    return found


def _no_addresses(nodes: tuple[str, ...]) -> list[int]:
    """Where something else than a host and its port stands."""
    split = [node.rpartition(":") for node in nodes]
    return [i for i, (host, _, port) in enumerate(split) if not host or not port.isdigit() or not 0 < int(port) < 65536]


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
