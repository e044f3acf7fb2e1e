"""An OpenID Connect issuer of a test's own: key pairs, tokens right and wrong, and its keys served over HTTP."""

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from tests.support.loopback_http import Asked, LoopbackServer, Says

AUDIENCE = "penstock"


class KeyPair:
    """Made anew; RSA by default."""

    def __init__(self, kid: str | None, algorithm: str = "RS256", *, bits: int = 2048) -> None:
        self.kid = kid
        self.algorithm = algorithm
        self.private: Any
        if algorithm.startswith("ES"):
            self.private = ec.generate_private_key(ec.SECP256R1() if algorithm == "ES256" else ec.SECP384R1())
        elif algorithm == "EdDSA":
            self.private = ed25519.Ed25519PrivateKey.generate()
        else:
            self.private = rsa.generate_private_key(public_exponent=65537, key_size=bits)

    @property
    def jwk(self) -> dict[str, Any]:
        """The public part."""
        kinds = {"ES": ECAlgorithm, "Ed": OKPAlgorithm}
        kind: Any = kinds.get(self.algorithm[:2], RSAAlgorithm)
        found = dict(json.loads(kind.to_jwk(self.private.public_key())))
        return {**found, "use": "sig", "alg": self.algorithm, **({} if self.kid is None else {"kid": self.kid})}

    @property
    def pem(self) -> bytes:
        pem: bytes = self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem

    def token(
        self, issuer: str, *, algorithm: str | None = None, head: Mapping[str, Any] | None = None, **claims: Any
    ) -> str:
        """Good for five minutes, but for what `claims` say; None leaves one out."""
        headers = {**({} if self.kid is None else {"kid": self.kid}), **(head or {})}
        return jwt.encode(body(issuer, **claims), self.private, algorithm or self.algorithm, headers)


def body(issuer: str, **claims: Any) -> dict[str, Any]:
    now = int(datetime.now(UTC).timestamp())
    said = {"iss": issuer, "aud": AUDIENCE, "sub": "alice", "iat": now, "exp": now + 300, "groups": ["sre"], **claims}
    return {name: value for name, value in said.items() if value is not None}


def by_hand(head: dict[str, Any], claims: dict[str, Any], signature: bytes = b"") -> str:
    """A token as no library makes one."""
    parts = (json.dumps(head).encode(), json.dumps(claims).encode(), signature)
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


class Issuer:
    """Serves its keys while inside `server`; counts who asks."""

    def __init__(self, *pairs: KeyPair) -> None:
        self.pairs = list(pairs)
        self.server = LoopbackServer(self._answer)
        self.asked: list[str] = []
        self.status = 200
        self.said: object = None  # instead of the keys
        self.jwks_uri: str | None = None

    @property
    def url(self) -> str:
        return self.server.url

    async def _answer(self, asked: Asked) -> Says:
        self.asked.append(asked.path)
        if asked.path == "/.well-known/openid-configuration":
            told: object = {"issuer": self.url, "jwks_uri": self.jwks_uri or f"{self.url}/keys"}
        else:
            told = self.said if self.said is not None else {"keys": [pair.jwk for pair in self.pairs]}
        return Says(self.status, json.dumps(told).encode(), {"content-type": "application/json"})
