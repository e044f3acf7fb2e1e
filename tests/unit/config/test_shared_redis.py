"""The section `redis`: what can't work is refused with what to change, and its passwords are shown nowhere."""

import pytest

from config.load import ConfigError, load, redacted_yaml

REPLICAS = [{"name": "a", "url": "http://h:1"}]


def problems(redis: dict[str, object], **sections: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(None, {"replicas": REPLICAS, "redis": redis, **sections}, {})
    return caught.value.problems


@pytest.mark.parametrize(
    ("redis", "path", "says"),
    [
        ({"url": "http://h:6379"}, "redis.url", "is no Redis address; write redis://"),
        ({"url": "redis://:secret@h:6379"}, "redis.url", "put them in `username` and `password`"),
        ({"url": "redis://h:99999"}, "redis.url", "bad host or port"),
        ({"url": "unix://run/redis.sock"}, "redis.url", "is no Unix socket"),
        ({"sentinel": {"master": "m", "nodes": ["h"]}}, "redis.sentinel.nodes[0]", "is no host:port"),
        ({"url": "redis://h", "sentinel": {"master": "m", "nodes": ["h:1"]}}, "redis.url", "keep one of the two"),
        ({"cluster": True}, "redis.cluster", "needs `url`"),
        ({"url": "redis://h", "cluster": True, "wait_replicas": 1}, "redis.wait_replicas", "min-replicas-to-write"),
        ({"url": "redis://h", "cluster": True, "cluster_nodes": ["h"]}, "redis.cluster_nodes[0]", "is no host:port"),
        ({"url": "redis://h", "cluster_nodes": ["h:1"]}, "redis.cluster_nodes", "`cluster` is false"),
        ({"url": "redis://h", "timeout_s": 2}, "redis.timeout_s", "longer than lease_s, 1.5"),
        ({"url": "redis://h", "forget_s": 4}, "redis.forget_s", "twice lease_s and settle_s together, 5"),
        ({"url": "redis://h", "settle_s": 0.5}, "redis.settle_s", "less than probe.interval_s, 1"),
        ({"url": "redis://h", "prefix": "{a}"}, "redis.prefix", "wrong form"),
        ({"url": "redis://h", "lease": 2}, "redis.lease", "did you mean `lease_s`?"),
    ],
)
def test_what_cannot_work_is_refused(redis: dict[str, object], path: str, says: str):
    """The key path first, then what is wrong and what to do."""
    (problem,) = problems(redis)
    assert problem.startswith(f"{path}: ")
    assert says in problem
    assert "secret" not in problem


def test_passwords_are_references_and_stay_hidden():
    """`env:` is resolved for Redis and for its Sentinels, from the file and from the environment; neither is printed."""
    sentinel = {"master": "m", "nodes": ["h:1"], "password": "env:B"}
    redis = {"sentinel": sentinel, "password": "env:A"}
    config = load(None, {"replicas": REPLICAS, "redis": redis}, {"A": "first-one", "B": "second-one"})
    assert config.redis.sentinel is not None
    assert (config.redis.password, config.redis.sentinel.password) == ("first-one", "second-one")
    assert "-one" not in redacted_yaml(config)
    environ = {
        "PENSTOCK_REDIS__URL": "redis://h",
        "PENSTOCK_REDIS__PASSWORD": "env:PENSTOCK_PW",
        "PENSTOCK_PW": "third",
    }
    assert load(None, {"replicas": REPLICAS}, environ).redis.password == "third"


def test_off_unless_it_says_where():
    """Without an address a gateway is alone."""
    assert not load(None, {"replicas": REPLICAS}, {}).redis.enabled
    assert load(None, {"replicas": REPLICAS, "redis": {"url": "unix:///run/redis.sock"}}, {}).redis.enabled
