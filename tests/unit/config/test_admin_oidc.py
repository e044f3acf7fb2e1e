"""The section `server.admin_oidc`: off without an issuer; what would let in too many is refused, with what to do."""

from typing import Any

import pytest

from config import oidc
from config.load import ConfigError, load

GOOD = {"issuer": "https://login.example.com", "audience": ["penstock"], "write": ["sre"]}


def problems(**changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(None, {"server": {"admin_oidc": {**GOOD, **changes}}}, {})
    return caught.value.problems


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"issuer": "http://login.example.com"}, "issuer: must be https://"),
        ({"issuer": "https://user:pw@login.example.com"}, "issuer: must be https://"),
        ({"issuer": "login.example.com"}, "issuer: must be https://"),
        ({"jwks_url": "http://10.0.0.1/keys"}, "jwks_url: must be https://"),
        ({"jwks_url": "file:///etc/passwd"}, "jwks_url: must be https://"),
        ({"audience": []}, "audience: empty; without it a token for any other"),
        ({"write": []}, "write: empty, as `read`"),
        ({"algorithms": ["HS256"]}, "algorithms[0]"),
        ({"algorithms": ["none"]}, "algorithms[0]"),
        ({"algorithms": []}, "algorithms: empty"),
        ({"leeway_s": 3600}, "leeway_s"),
    ],
)
def test_what_would_let_in_too_many(changes: dict[str, Any], says: str):
    """One line, with the key path and what to do."""
    (problem,) = problems(**changes)
    assert problem.startswith(f"server.admin_oidc.{says}"), problem


def test_the_extra_must_be_there(monkeypatch: pytest.MonkeyPatch):
    """Where it is not, the start says what to install; who wants no tokens needs nothing."""
    monkeypatch.setattr(oidc, "find_spec", lambda _: None)
    assert any("pip install 'penstock[oidc]'" in problem for problem in problems())
    assert not load(None, {}, {}).server.admin_oidc.enabled


def test_this_machine_may_be_asked_in_the_open():
    """For trials."""
    for host in ("127.0.0.1:8000", "localhost:8000", "[::1]:8000"):
        section = {**GOOD, "issuer": f"http://{host}", "jwks_url": f"http://{host}/keys"}
        assert load(None, {"server": {"admin_oidc": section}}, {}).server.admin_oidc.enabled
