"""Tokens of the login: only what the issuer has signed, for us, that is good now; and no token chooses how it is checked."""

import base64
import hashlib
import hmac
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from config.oidc import AdminOidc
from config.tenants import Scope
from router.oidc.tokens import BadToken, Bearer, Why, judged, keys_of, looks_like_one
from router.tenants.keys import BITS
from tests.support.issuer import KeyPair, body, by_hand

ISSUER = "https://login.example.com/realms/ops"
ALL = ("RS256", "PS256", "ES256", "ES384", "EdDSA")


@pytest.fixture(scope="module")
def pair() -> KeyPair:
    return KeyPair("k1")


def oidc(**changes: Any) -> AdminOidc:
    said = {"issuer": ISSUER, "audience": ["penstock", "other"], "read": ["ops"], "write": ["sre"], **changes}
    return AdminOidc.model_validate(said)


def told(token: str, *pairs: KeyPair, jwks: Any = None, **changes: Any) -> Bearer:
    keys = keys_of(jwks or {"keys": [one.jwk for one in pairs]})
    return judged(token, keys, oidc(**changes))


def why_not(token: str, *pairs: KeyPair, **changes: Any) -> Why:
    with pytest.raises(BadToken) as caught:
        told(token, *pairs, **changes)
    assert len(token) < 9 or token not in str(caught.value)
    return caught.value.why


def test_a_good_token_says_who_and_what(pair: KeyPair):
    """Its subject, for the log; `write` includes `read`; who is in neither may nothing."""
    bearer = told(pair.token(ISSUER), pair)
    assert bearer == Bearer("alice", BITS[Scope.ADMIN_READ] | BITS[Scope.ADMIN_WRITE])
    assert told(pair.token(ISSUER, groups=["ops", "x"]), pair).mask == BITS[Scope.ADMIN_READ]
    assert told(pair.token(ISSUER, groups=["x"]), pair).mask == 0
    assert told(pair.token(ISSUER, groups=None), pair).mask == 0
    assert told(pair.token(ISSUER, aud=["x", "other"]), pair).name == "alice"


def test_the_claim_is_a_list_words_or_deeper(pair: KeyPair):
    """As providers do it: `scope` is words, Keycloak's roles lie deeper, others' names are URLs with dots in them."""
    may = BITS[Scope.ADMIN_READ]
    assert told(pair.token(ISSUER, scope="openid ops"), pair, claim="scope").mask == may
    assert told(pair.token(ISSUER, realm_access={"roles": ["ops"]}), pair, claim="realm_access.roles").mask == may
    named = {"https://example.com/roles": ["ops"]}
    assert told(pair.token(ISSUER, **named), pair, claim="https://example.com/roles").mask == may
    for odd in (7, {"ops": True}, [["ops"]], "opsops"):
        assert told(pair.token(ISSUER, groups=odd), pair).mask == 0


def test_a_name_for_the_log_is_one_word(pair: KeyPair):
    """Whatever the issuer lets people call themselves: no line ends, no length."""
    name = told(pair.token(ISSUER, sub="eve\nrestore of replica x, asked by root " + "y" * 200), pair).name
    assert "\n" not in name
    assert " " not in name
    assert len(name) == 80


@pytest.mark.parametrize("algorithm", ALL)
def test_every_algorithm_that_is_allowed_works(algorithm: str):
    """And none does that is not."""
    one = KeyPair("k", algorithm)
    assert told(one.token(ISSUER), one, algorithms=[algorithm]).name == "alice"
    others = [name for name in ALL if name != algorithm]
    assert why_not(one.token(ISSUER), one, algorithms=others) is Why.ALGORITHM


def test_no_signature_is_none(pair: KeyPair):
    """`none` in any writing, with and without something where the signature would be."""
    for name in ("none", "None", "NONE", "nOnE", "", None):
        head = {"typ": "JWT", "kid": "k1"} if name is None else {"alg": name, "typ": "JWT", "kid": "k1"}
        for signature in (b"", b"x"):
            assert why_not(by_hand(head, body(ISSUER), signature), pair) in {Why.ALGORITHM, Why.MALFORMED}


def test_a_public_key_is_no_secret(pair: KeyPair):
    """The old confusion: HS256 with the public key, as everybody knows it, for its secret. Also where the issuer lists a secret."""
    for secret in (pair.pem, json.dumps(pair.jwk).encode()):
        unsigned = by_hand({"alg": "HS256", "kid": "k1"}, body(ISSUER)).rpartition(".")[0]
        signature = hmac.digest(secret, unsigned.encode(), hashlib.sha256)
        head, claims = unsigned.split(".")
        token = f"{head}.{claims}." + by_hand({}, {}, signature).rpartition(".")[2]
        assert why_not(token, pair) is Why.ALGORITHM
        jwks = {"keys": [pair.jwk, {"kty": "oct", "kid": "k1", "k": "c2VjcmV0", "alg": "HS256"}]}
        assert why_not(token, jwks=jwks) is Why.ALGORITHM
    with pytest.raises(ValueError, match="algorithms"):
        oidc(algorithms=["HS256"])
    with pytest.raises(ValueError, match="algorithms"):
        oidc(algorithms=["none"])


def test_a_key_is_used_as_it_is_meant(pair: KeyPair):
    """RS256's key checks no PS256, a key of an elliptic curve no RSA; a key for encryption none; where the kid is another's, nothing."""
    curve = KeyPair("k2", "ES256")
    assert why_not(pair.token(ISSUER, algorithm="PS256"), pair, algorithms=["RS256", "PS256"]) is Why.ALGORITHM
    assert why_not(pair.token(ISSUER, head={"kid": "k2"}), pair, curve) is Why.ALGORITHM
    twice = KeyPair("k1", "ES256")
    assert told(pair.token(ISSUER), pair, twice).name == "alice"  # of one kid the one that fits
    with pytest.raises(ValueError, match="no public key"):
        keys_of({"keys": [{**pair.jwk, "use": "enc"}]})
    other = KeyPair("k1")
    assert why_not(other.token(ISSUER), pair) is Why.SIGNATURE


def test_what_a_token_brings_along_is_not_used(pair: KeyPair):
    """A key of its own, or an address of one, in its head: it is checked with the issuer's, and fails."""
    forger = KeyPair("k1")
    for extra in ({"jwk": forger.jwk}, {"jku": "https://evil.example/keys"}, {"x5u": "https://evil.example/c"}):
        assert why_not(forger.token(ISSUER, head=extra), pair) is Why.SIGNATURE
    assert why_not(pair.token(ISSUER, head={"crit": ["b64"], "b64": False}), pair) is Why.MALFORMED


def test_which_key_must_be_clear(pair: KeyPair):
    """Without a kid the only key there is will do, and no one of two; an unknown kid is unknown."""
    nameless, other = KeyPair(None), KeyPair("k2")
    assert told(nameless.token(ISSUER), nameless).name == "alice"
    assert why_not(nameless.token(ISSUER), nameless, other) is Why.UNKNOWN_KEY
    assert why_not(other.token(ISSUER), pair) is Why.UNKNOWN_KEY


@pytest.mark.parametrize(
    ("claims", "why"),
    [
        ({"exp": -31}, Why.EXPIRED),
        ({"nbf": 31}, Why.NOT_YET),
        ({"iat": 31}, Why.NOT_YET),
        ({"aud": "another"}, Why.AUDIENCE),
        ({"aud": ["another"]}, Why.AUDIENCE),
        ({"iss": ISSUER + "/"}, Why.ISSUER),
        ({"iss": "https://login.example.com/realms/others"}, Why.ISSUER),
        ({"exp": None}, Why.CLAIMS),
        ({"aud": None}, Why.CLAIMS),
        ({"iss": None}, Why.CLAIMS),
        ({"sub": None}, Why.CLAIMS),
        ({"exp": "soon"}, Why.MALFORMED),
    ],
)
def test_claims_that_do_not_let_in(pair: KeyPair, claims: dict[str, Any], why: Why):
    """Beyond the clocks' difference, for others, from others, or with something missing. Numbers are seconds from now."""
    now = int(datetime.now(UTC).timestamp())
    said = {name: now + value if isinstance(value, int) else value for name, value in claims.items()}
    assert why_not(pair.token(ISSUER, **said), pair) is why


def test_clocks_may_differ_by_so_much(pair: KeyPair):
    """Within the leeway - which has a bound - a token is good before its time and after it."""
    now = int(datetime.now(UTC).timestamp())
    for said in ({"exp": now - 200}, {"nbf": now + 200}):
        assert told(pair.token(ISSUER, **said), pair, leeway_s=300).name == "alice"
    with pytest.raises(ValueError, match="leeway_s"):
        oidc(leeway_s=301)


def test_rubbish_is_malformed(pair: KeyPair):
    """Whatever comes in a header: no error but the one."""
    good = pair.token(ISSUER)
    for rubbish in (
        "",
        "..",
        "eyJ..",
        "eyJhbGciOiJSUzI1NiJ9.e30.",
        good + "A" * 9000,
        "eyJ\u00e9.x.y",
        "eyJhbGci.eyJ.x",
        base64.urlsafe_b64encode(b"[" * 6000).decode() + ".e30.",
        base64.urlsafe_b64encode(b'{"alg":' * 800).decode() + ".e30.",
    ):
        assert why_not(rubbish, pair) in {Why.MALFORMED, Why.ALGORITHM, Why.UNKNOWN_KEY, Why.SIGNATURE}
    head, _, signature = good.split(".")
    assert (
        why_not(f"{head}.{by_hand({}, body(ISSUER, groups=['sre', 'x'])).split('.')[1]}.{signature}", pair)
        is Why.SIGNATURE
    )
    assert looks_like_one(good)
    assert not looks_like_one("psk-abc.def.ghi")


@pytest.mark.parametrize(
    "document", [None, [], {}, {"keys": {}}, {"keys": []}, {"keys": [7, {"kty": "RSA"}, {"kty": "EC", "crv": "P-1"}]}]
)
def test_what_is_no_jwks(document: object):
    """Is said, and gives no keys."""
    with pytest.raises(ValueError, match=r"JWKS|no public key"):
        keys_of(document)


@pytest.mark.parametrize(
    "entry",
    [
        {"kty": ["RSA"]}, {"kty": {}}, {"kty": None}, {"kty": "RSA", "n": 7, "e": ["AQAB"]}, {"kty": "RSA", "n": "", "e": ""},
        {"kty": "EC", "crv": ["P-256"], "x": {}, "y": 1}, {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "OKP", "crv": 3, "x": []}, {"kty": "OKP", "crv": "X25519", "x": "AA"}, {"kty": "OKP", "crv": "Ed25519", "x": "\ud800"},
        {"use": ["sig"], "kty": "RSA"}, ["kty"], "kty",
    ],
)  # fmt: skip
def test_an_entry_that_is_no_key_takes_no_other_along(pair: KeyPair, entry: object):
    """Whatever stands there in the place of what should, the others are used."""
    assert [key.kid for key in keys_of({"keys": [entry, pair.jwk]})] == ["k1"]
    with pytest.raises(ValueError, match="no public key"):
        keys_of({"keys": [entry]})


def test_short_keys_are_not_used(pair: KeyPair):
    """RSA below 2048 bits."""
    short = KeyPair("short", bits=1024)
    assert [key.kid for key in keys_of({"keys": [short.jwk, pair.jwk]})] == ["k1"]
