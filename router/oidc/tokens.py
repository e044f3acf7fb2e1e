"""Whether a token is the issuer's, for us, and good now; and what its bearer may do. Pure, but for the calendar's clock.

The one place that loads the library that checks signatures. What a token says of how it is signed is believed only as far as it is
allowed here and fits the key: it chooses neither the key's kind nor where a key comes from.
"""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from config.oidc import AdminOidc
from config.tenants import Scope
from router.tenants.keys import mask_of

if TYPE_CHECKING:
    from jwt import PyJWK

log = logging.getLogger("penstock.oidc")

MAX_TOKEN_CHARS: Final = 8192
_MAX_KEYS: Final = 64
_LEAST_RSA_BITS: Final = 2048
_MAX_NAME: Final = 80
# By family of algorithm, the kind of key that it takes, and the curve where there is but one.
_KINDS: Final[Mapping[str, tuple[str, frozenset[str] | None]]] = {
    "RS": ("RSA", None),
    "PS": ("RSA", None),
    "ES256": ("EC", frozenset({"P-256"})),
    "ES384": ("EC", frozenset({"P-384"})),
    "ES512": ("EC", frozenset({"P-521"})),
    "EdDSA": ("OKP", frozenset({"Ed25519", "Ed448"})),
}


class Why(StrEnum):
    """Why a token does not let in."""

    MALFORMED = "it is no token that can be read"
    ALGORITHM = "it is signed in a way that server.admin_oidc.algorithms does not name"
    UNKNOWN_KEY = "its key is none of the issuer's"
    SIGNATURE = "its signature is wrong"
    EXPIRED = "it has expired"
    NOT_YET = "it is not good yet; the clocks may differ"
    AUDIENCE = "it is for somebody else (server.admin_oidc.audience)"
    ISSUER = "it is from somebody else (server.admin_oidc.issuer)"
    CLAIMS = "it lacks a claim: exp, iss, aud and sub must be there"


class BadToken(Exception):
    """It does not let in; `why` shows nothing of it."""

    def __init__(self, why: Why) -> None:
        super().__init__(why.value)
        self.why = why


@dataclass(frozen=True, slots=True)
class IssuerKey:
    """One public key of the issuer's."""

    kid: str | None
    kind: str
    curve: str | None
    algorithm: str | None  # the only one that it is for, if it says so
    key: "PyJWK"


@dataclass(frozen=True, slots=True)
class Bearer:
    """Whose token was good: a name for the audit log, and scopes as bits."""

    name: str
    mask: int


def looks_like_one(text: str) -> bool:
    """Else it is a key of another kind."""
    return text.count(".") == 2 and text.startswith("eyJ")


def keys_of(document: object) -> tuple[IssuerKey, ...]:
    """Of a JWKS: the public keys for signatures that can be used. Raises ValueError where it is none, or has no such key."""
    from jwt import PyJWK  # noqa: PLC0415 - an extra, and not everybody has it

    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise ValueError("no JWKS: it has no list `keys`")  # noqa: TRY004 - of a document, not of an argument
    found = []
    for entry in listed[:_MAX_KEYS]:
        if (
            not isinstance(entry, dict)
            or entry.get("use", "sig") != "sig"
            or entry.get("kty") not in ("RSA", "EC", "OKP")  # no set: it may be a list, or anything
        ):
            continue  # of kind `oct` above all: a secret is nobody's public key
        public = {
            name: value for name, value in entry.items() if name not in {"d", "p", "q", "dp", "dq", "qi", "oth", "alg"}
        }
        algorithm, kid, curve = entry.get("alg"), entry.get("kid"), entry.get("crv")
        try:
            key = PyJWK(public, algorithm=_some_algorithm(entry["kty"], curve))
        except Exception:  # of two libraries, over what a stranger wrote: one key that is none takes no other along
            log.debug("a key of the issuer's cannot be used", exc_info=True)
            continue
        if entry["kty"] == "RSA" and key.key.key_size < _LEAST_RSA_BITS:
            continue
        found.append(
            IssuerKey(
                kid=kid if isinstance(kid, str) else None,
                kind=entry["kty"],
                curve=curve if isinstance(curve, str) else None,
                algorithm=algorithm if isinstance(algorithm, str) else None,
                key=key,
            )
        )
    if not found:
        raise ValueError("no public key for signatures (RSA, EC, OKP) in it")
    return tuple(found)


def judged(token: str, keys: Iterable[IssuerKey], oidc: AdminOidc) -> Bearer:
    """Raises BadToken. Times by the calendar, now."""
    import jwt  # noqa: PLC0415 - an extra
    from jwt import exceptions as e  # noqa: PLC0415

    algorithm, key = _chosen(token, tuple(keys), oidc)
    refusals: tuple[tuple[type[Exception], Why], ...] = (
        (e.ExpiredSignatureError, Why.EXPIRED),
        (e.ImmatureSignatureError, Why.NOT_YET),
        (e.InvalidAudienceError, Why.AUDIENCE),
        (e.InvalidIssuerError, Why.ISSUER),
        (e.InvalidSignatureError, Why.SIGNATURE),
        (e.MissingRequiredClaimError, Why.CLAIMS),
    )
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            key.key.key,
            algorithms=[algorithm],
            audience=list(oidc.audience),
            issuer=oidc.issuer,
            leeway=oidc.leeway_s,
            options={"require": ["exp", "iss", "aud", "sub"]},
        )
    except (e.PyJWTError, ValueError, TypeError, RecursionError) as error:
        why = next((why for kind, why in refusals if isinstance(error, kind)), Why.MALFORMED)
        raise BadToken(why) from None
    return Bearer(_name(claims), _mask(claims, oidc))


def _chosen(token: str, keys: tuple[IssuerKey, ...], oidc: AdminOidc) -> tuple[str, IssuerKey]:
    """The algorithm, and the key that it is to be checked with."""
    import jwt  # noqa: PLC0415 - an extra
    from jwt.exceptions import PyJWTError  # noqa: PLC0415

    if len(token) > MAX_TOKEN_CHARS:
        raise BadToken(Why.MALFORMED)
    try:
        head = jwt.get_unverified_header(token)
    except (PyJWTError, ValueError, TypeError, RecursionError):  # the last: lists in lists in lists
        raise BadToken(Why.MALFORMED) from None
    algorithm, kid = head.get("alg"), head.get("kid")
    if algorithm not in oidc.algorithms:
        raise BadToken(Why.ALGORITHM)
    if "crit" in head:  # it must not be understood without what we do not know
        raise BadToken(Why.MALFORMED)
    named = [key for key in keys if key.kid == kid] if kid is not None else list(keys)
    fitting = [key for key in named if _fits(key, algorithm)]
    if len(fitting) != 1:  # none, or any of several: the issuer says which with `kid`
        raise BadToken(Why.UNKNOWN_KEY if not named or fitting else Why.ALGORITHM)
    return algorithm, fitting[0]


def _fits(key: IssuerKey, algorithm: str) -> bool:
    kind, curves = _KINDS.get(algorithm) or _KINDS[algorithm[:2]]
    return key.kind == kind and (curves is None or key.curve in curves) and key.algorithm in {None, algorithm}


def _some_algorithm(kind: str, curve: object) -> str:
    """What the key is read as; which one it is used with is another matter."""
    if kind == "EC":
        return {"P-256": "ES256", "P-384": "ES384", "P-521": "ES512"}[str(curve)]
    return "RS256" if kind == "RSA" else "EdDSA"


def _name(claims: Mapping[str, Any]) -> str:
    """For the log: printable, and short."""
    told = str(claims["sub"])[:_MAX_NAME]
    return "".join(c if c.isprintable() and not c.isspace() else "?" for c in told)


def _mask(claims: Mapping[str, Any], oidc: AdminOidc) -> int:
    values = _values(claims, oidc.claim)
    scopes = [Scope.ADMIN_READ] if values & {*oidc.read, *oidc.write} else []
    return mask_of([*scopes, Scope.ADMIN_WRITE] if values & set(oidc.write) else scopes)


def _values(claims: Mapping[str, Any], name: str) -> set[str]:
    found: object = claims.get(name)
    if found is None:
        found = claims
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
    if isinstance(found, str):
        return set(found.split())
    return {value for value in found if isinstance(value, str)} if isinstance(found, list) else set()
