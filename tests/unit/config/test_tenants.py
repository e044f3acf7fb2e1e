"""The sections `auth` and `tenants`: off unless a key comes from somewhere, and nonsense refused by its key path."""

from pathlib import Path
from typing import Any

import pytest

from config.load import ConfigError, load, redacted_yaml

KEYS = {"keys_file": "keys.jsonl"}
HASH = "ab" * 32


def config(**sections: Any) -> Any:
    return load(None, sections, {})


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"auth": {"metrics": True}}, "auth.keys_file: nobody is asked for a key"),
        ({"auth": {"pepper": "long enough to be one"}}, "auth.keys_file: nobody is asked for a key"),
        ({"auth": {**KEYS, "pepper": "short"}}, "auth.pepper: shorter than 16"),
        ({"auth": {"secret_keys": "acme"}}, "auth.secret_keys: entry 1 is not TENANT=KEY"),
        ({"auth": {"secret_keys": "acme=short"}}, "auth.secret_keys: the key of entry 1 is shorter"),
        ({"auth": {"secret_keys": " "}}, "auth.secret_keys: no entry"),
        ({"auth": {"keys": [{"id": "k", "tenant": "t", "sha256": "x"}]}}, "auth.keys[0].sha256"),
        ({"auth": {"keys": [{"id": "k", "tenant": "t", "sha256": HASH}] * 2}}, "auth.keys[1].id: 'k' is keys[0]'s"),
        ({"auth": {"keys": [{"id": "k", "tenant": "a b", "sha256": HASH}]}}, "auth.keys[0].tenant"),
        ({"auth": {"keys_redis": {"url": "http://h"}}}, "auth.keys_redis.url: 'http://h' is no Redis address"),
        ({"auth": {"keys_redis": {"url": "redis://a:b@h"}}}, "auth.keys_redis.url: carries a user or password"),
        ({"auth": {"keys_redis": {"prefix": "p"}, "metrics": True}}, "auth.keys_file: nobody is asked for a key"),
        ({"tenants": [{"name": "acme"}]}, "tenants: nobody can be told apart without keys"),
        ({"auth": KEYS, "tenants": [{"name": "a"}, {"name": "a"}]}, "tenants[1].name: 'a' is tenants[0] already"),
        (
            {"auth": KEYS, "tenants": [{"name": "a", "isolate_cache": True}]},
            "tenants[0].isolate_cache: needs auth.pepper",
        ),
        ({"auth": KEYS, "tenants": [{"name": "a", "models": ["a*b"]}]}, "tenants[0].models[0]: 'a*b' has a *"),
        ({"auth": KEYS, "tenants": [{"name": "a", "service_tiers": ["flex"]}]}, "tenants[0].default_tier: 'default'"),
        ({"auth": KEYS, "tenants": [{"name": "a", "weight": 0}]}, "tenants[0].weight"),
        ({"auth": KEYS, "tenants": [{"name": "a", "limits": {"concurrency": 0}}]}, "tenants[0].limits.concurrency"),
        (
            {"auth": KEYS, "tenants": [{"name": f"t{n}", "tenant_class": f"c{n}"} for n in range(17)]},
            "tenants: more than 16 values of tenant_class",
        ),
    ],
)
def test_nonsense_is_refused_where_it_is(sections: dict[str, Any], says: str):
    """One line with the key path and what to do; no secret in it."""
    with pytest.raises(ConfigError) as caught:
        config(**sections)
    assert any(problem.startswith(says) for problem in caught.value.problems), caught.value.problems
    assert "acme=short" not in str(caught.value)


def test_off_without_a_key():
    """The default asks nobody."""
    assert not config().auth.on
    assert config(auth=KEYS).auth.on
    assert config(auth={"secret_keys": "acme=0123456789-0123456789"}).auth.on
    assert config(auth={"keys_redis": {"url": "redis://h"}}).auth.on
    assert config(auth={"keys_redis": {"sentinel": {"master": "m", "nodes": ["h:1"]}}}).auth.on


def test_secrets_come_by_reference_and_are_never_shown(tmp_path: Path):
    """`env:` and `file:` are read for the pepper and for keys, from the file or a variable; printed, they are hidden."""
    pepper = tmp_path / "pepper"
    pepper.write_text("a pepper of the file\n")
    environ = {
        "KEYS": "acme=0123456789-0123456789",
        "PENSTOCK_AUTH__SECRET_KEYS": "env:KEYS",
        "PENSTOCK_AUTH__PEPPER": f"file:{pepper}",
        "PENSTOCK_AUTH__KEYS_REDIS__URL": "redis://h",
        "PENSTOCK_AUTH__KEYS_REDIS__PASSWORD": "env:REDIS_PW",
        "REDIS_PW": "the-word-of-redis",
    }
    found = load(None, {}, environ)
    assert found.auth.pepper == "a pepper of the file"
    assert found.auth.secret_keys == environ["KEYS"]
    assert found.auth.keys_redis.password == "the-word-of-redis"
    shown = redacted_yaml(found) + repr(found)
    assert "0123456789" not in shown
    assert "a pepper of" not in shown
    assert "the-word" not in shown
