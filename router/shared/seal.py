"""Closes what is written where others may read it: with a secret of the fleet, by the standard library alone.

SHAKE-256 of key and nonce is the key stream, a keyed BLAKE2b over nonce and text the proof that nobody else wrote it (encrypt, then
authenticate). Does not hinder a replay: what it is used for is old news then.
"""

import hmac
from hashlib import blake2b, shake_256
from secrets import token_bytes
from typing import Final

_NONCE_BYTES: Final = 16
_PROOF_BYTES: Final = 16


class Seal:
    """`purpose`: one secret, different keys for each use."""

    def __init__(self, secret: bytes, purpose: str) -> None:
        self._key = hmac.digest(secret, b"penstock seal " + purpose.encode(), "sha256")
        self._proof_key = hmac.digest(secret, b"penstock proof " + purpose.encode(), "sha256")

    def closed(self, text: bytes) -> bytes:
        nonce = token_bytes(_NONCE_BYTES)
        said = nonce + self._turned(nonce, text)
        return self._proof(said) + said

    def opened(self, closed: bytes) -> bytes | None:
        """None: it was not closed with this secret, or was changed."""
        proof, said = closed[:_PROOF_BYTES], closed[_PROOF_BYTES:]
        if len(said) < _NONCE_BYTES or not hmac.compare_digest(proof, self._proof(said)):
            return None
        return self._turned(said[:_NONCE_BYTES], said[_NONCE_BYTES:])

    def _turned(self, nonce: bytes, text: bytes) -> bytes:
        stream = shake_256(self._key + nonce).digest(len(text))
        return (int.from_bytes(text, "big") ^ int.from_bytes(stream, "big")).to_bytes(len(text), "big")

    def _proof(self, said: bytes) -> bytes:
        return blake2b(said, key=self._proof_key, digest_size=_PROOF_BYTES).digest()
