"""The section `server.admin_oidc`: people who come to `/admin` with a token of the company's login, an OpenID Connect provider (docs/admin-login.md)."""

from importlib.util import find_spec
from ipaddress import ip_address
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, PositiveFloat, model_validator

from config.checks import Problem, refusal
from config.section import Section

# Signatures by a key pair only. With a shared secret who can check a token can make one, and `none` is no signature.
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]


class AdminOidc(Section):
    """Who else may call `/admin`. Off without `issuer`; needs `pip install 'penstock[oidc]'`."""

    issuer: str | None = Field(
        None, description="https://login.example.com/realms/ops, to the letter as tokens name it"
    )
    audience: tuple[str, ...] = Field((), description="of which a token must be for at least one")
    jwks_url: str | None = Field(
        None, description="of the issuer's keys; null: where its /.well-known/openid-configuration says"
    )
    claim: str = Field(
        "groups", min_length=1, description="what tells who may: a list or words; `a.b` also means `b` inside `a`"
    )
    read: tuple[str, ...] = Field((), description="values of `claim` that may GET")
    write: tuple[str, ...] = Field((), description="values of `claim` that may do all of it")
    algorithms: tuple[Algorithm, ...] = Field(("RS256", "ES256"), description="no others are looked at")
    leeway_s: float = Field(30.0, ge=0, le=300, description="that clocks may differ by")
    refresh_s: PositiveFloat = Field(600.0, ge=30, description="after which the issuer's keys are read again")
    timeout_s: PositiveFloat = Field(5.0, le=30, description="for one answer of the issuer")

    @property
    def enabled(self) -> bool:
        return self.issuer is not None

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        problems = list(_problems(self)) if self.enabled else []
        if problems:
            raise refusal("admin_oidc", problems)
        return self


def _problems(oidc: AdminOidc) -> list[Problem]:
    found: list[Problem] = []
    if find_spec("jwt") is None or find_spec("cryptography") is None:
        found.append((("issuer",), "needs packages that are not installed; pip install 'penstock[oidc]'"))
    for name, url in (("issuer", oidc.issuer), ("jwks_url", oidc.jwks_url)):
        if url is not None and not _is_safe(url):
            what = "must be https://...: who can change its keys on the way makes himself an admin (http:// to this machine only)"
            found.append(((name,), what))
    if not any(oidc.audience):
        what = "empty; without it a token for any other of the issuer's services would do. Name this gateway as the issuer does"
        found.append((("audience",), what))
    if not oidc.algorithms:
        found.append((("algorithms",), "empty: no token could be good; leave it out for RS256 and ES256"))
    if not any((*oidc.read, *oidc.write)):
        found.append((("write",), f"empty, as `read`: nobody could come in; name values of the claim {oidc.claim!r}"))
    return found


def _is_safe(url: str) -> bool:
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    if parts.username is not None or not host:
        return False
    if parts.scheme == "https":
        return True
    if host == "localhost":
        return parts.scheme == "http"
    try:
        return parts.scheme == "http" and ip_address(host).is_loopback
    except ValueError:
        return False
