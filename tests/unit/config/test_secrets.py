"""Secrets by reference: resolved when loaded, shown nowhere."""

from pathlib import Path

import pytest

from config.load import ConfigError, load, redacted_yaml
from config.schema import Config

KEY = "sk-very-secret"


def config_with(api_key: str, environ: dict[str, str] | None = None) -> Config:
    return load(None, {"replicas": [{"name": "a", "url": "http://h:1", "api_key": api_key}]}, environ or {})


def problem_of(api_key: object, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(None, {"replicas": [{"name": "a", "url": "http://h:1", "api_key": api_key}]}, environ or {})
    (problem,) = caught.value.problems
    return problem


def test_references_are_resolved(tmp_path: Path):
    """`env:` and `file:` give their contents, a file without its last newline; a literal is itself."""
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    assert config_with("env:VLLM_KEY", {"VLLM_KEY": KEY}).replicas[0].api_key == KEY
    assert config_with(f"file:{path}").replicas[0].api_key == KEY
    assert config_with(KEY).replicas[0].api_key == KEY


def test_a_secret_s_variable_may_carry_our_prefix(tmp_path: Path):
    """`env:PENSTOCK_KEY_A` in the file or in PENSTOCK_REPLICAS is a secret's name, not an unknown setting."""
    path = tmp_path / "p.yaml"
    path.write_text("replicas: [{name: a, url: 'http://h:1', api_key: 'env:PENSTOCK_KEY_A'}]")
    assert load(path, {}, {"PENSTOCK_KEY_A": KEY}).replicas[0].api_key == KEY
    replicas = '[{"name": "a", "url": "http://h:1", "api_key": "env:PENSTOCK_KEY_A"}]'
    assert load(None, {}, {"PENSTOCK_REPLICAS": replicas, "PENSTOCK_KEY_A": KEY}).replicas[0].api_key == KEY


def test_an_alias_shared_by_replicas_is_resolved_for_each(tmp_path: Path):
    """Two replicas made from one YAML anchor both get the key."""
    path = tmp_path / "p.yaml"
    path.write_text(
        "replicas:\n  - &a {name: a, url: 'http://h:1', api_key: 'env:K'}\n  - {<<: *a, name: b, url: 'http://h:2'}\n"
    )
    assert [replica.api_key for replica in load(path, {}, {"K": KEY}).replicas] == [KEY, KEY]


def test_what_cannot_be_resolved_names_the_key_path(tmp_path: Path):
    """Unset variables, missing and empty files are errors, not empty keys."""
    empty, binary, huge = tmp_path / "empty", tmp_path / "binary", tmp_path / "huge"
    huge.write_text("k" * 20_000)
    empty.write_text(" \n")
    binary.write_bytes(b"\xff\xfe")
    assert (
        problem_of("env:NOPE")
        == "replicas[0].api_key: the environment variable NOPE is not set; export it, or remove the key"
    )
    assert (
        problem_of("file:/nonexistent")
        == "replicas[0].api_key: /nonexistent: No such file or directory; check the path after file:"
    )
    assert problem_of(f"file:{empty}") == f"replicas[0].api_key: {empty}: empty; the file must hold the key alone"
    assert (
        problem_of(f"file:{huge}")
        == f"replicas[0].api_key: {huge}: larger than any key; the file must hold the key alone"
    )
    assert problem_of(f"file:{binary}") == f"replicas[0].api_key: {binary}: not text; the file must hold the key alone"


@pytest.mark.parametrize("value", [f"{KEY}\nx-evil: 1", f"{KEY} {KEY}", f"{KEY}\u00e9"])
def test_a_key_that_no_header_can_carry_is_refused_unseen(value: str):
    """No header injection, and the message does not show the key."""
    problem = problem_of(value)
    assert problem.startswith("replicas[0].api_key: empty, or has spaces, line breaks")
    assert KEY not in problem


@pytest.mark.parametrize(
    "replica",
    [
        {"api_key": [KEY]},
        {"api_kye": KEY},
        {"api_key": {KEY: 1}},
        {"url": f"http://user:{KEY}@h:1"},
        {"url": f"ftp://user:{KEY}@h:1"},
        {"metrics_url": f"http://user:{KEY}@h:99999"},
    ],
)
def test_no_error_shows_a_secret(replica: dict[str, object]):
    """Mistyped keys, wrong types and credentials in URLs are reported without their values."""
    with pytest.raises(ConfigError) as caught:
        load(None, {"replicas": [{"name": "a", "url": "http://h:1", **replica}]}, {})
    assert caught.value.problems
    assert KEY not in str(caught.value)
    assert caught.value.__suppress_context__


def test_bad_json_in_a_variable_is_not_shown():
    """PENSTOCK_REPLICAS may hold keys."""
    with pytest.raises(ConfigError) as caught:
        load(None, {}, {"PENSTOCK_REPLICAS": f'[{{"api_key": "{KEY}"'})
    assert KEY not in str(caught.value)


def test_neither_printing_nor_repr_shows_a_secret():
    """--print-config hides keys, and so does a replica in a log line; an absent key stays absent."""
    config = config_with(KEY)
    assert KEY not in redacted_yaml(config)
    assert "api_key: '***'" in redacted_yaml(config)
    assert KEY not in repr(config)
    assert "***" not in redacted_yaml(load(None, {}, {}))


ADMIN = "the-admin-s-key-0123456789"


def test_admin_key_is_a_secret_like_others(tmp_path: Path):
    """By reference or as it is, from a file, a flag or a variable; shown nowhere."""
    held = tmp_path / "admin.key"
    held.write_text(ADMIN + "\n")
    path = tmp_path / "penstock.yaml"
    path.write_text("replicas: [{name: a, url: 'http://h:1'}]\nserver: {admin_key: 'env:PENSTOCK_ADMIN'}")
    found = [
        load(path, {}, {"PENSTOCK_ADMIN": ADMIN}),
        load(None, {"server": {"admin_key": f"file:{held}"}}, {}),
        load(None, {}, {"PENSTOCK_SERVER__ADMIN_KEY": ADMIN}),
        load(None, {}, {"PENSTOCK_SERVER__ADMIN_KEY": "env:PENSTOCK_ADMIN", "PENSTOCK_ADMIN": ADMIN}),
        load(None, {}, {"PENSTOCK_SERVER": '{"admin_key": "env:PENSTOCK_ADMIN"}', "PENSTOCK_ADMIN": ADMIN}),
    ]
    assert [config.server.admin_key for config in found] == [ADMIN] * 5
    for config in found:
        assert ADMIN not in redacted_yaml(config)
        assert ADMIN not in repr(config)
    assert "admin_key: '***'" in redacted_yaml(found[0])


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("env:NOPE", "the environment variable NOPE is not set"),
        ("too-little", "shorter than 16 characters, so it could be guessed; `openssl rand -hex 32` makes one"),
        ("with a space in it, and long", "empty, or has spaces"),
        ("", "empty, or has spaces"),
    ],
)
def test_admin_key_that_protects_nothing_is_refused_unseen(key: str, says: str):
    """Missing, guessable, or one that no client can send."""
    with pytest.raises(ConfigError) as caught:
        load(None, {"server": {"admin_key": key}}, {})
    assert [problem for problem in caught.value.problems if problem.startswith(f"server.admin_key: {says}")]
    assert not key or key.startswith("env:") or key not in str(caught.value)
