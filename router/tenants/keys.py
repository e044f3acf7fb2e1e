"""An API key and its record: how keys are made, hashed and written down. Pure; files and time are somebody else's.

A key has 256 random bits, so that one SHA-256 is as good as any slow hash, and costs a microsecond. With a pepper, what is compared is
HMAC(pepper, SHA-256(key)): a record that holds the plain hash is turned into it, so that a pepper may come later than the first keys.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Final

import msgspec

from config.tenants import Scope

PREFIX: Final = "psk-"
_KEY_BYTES: Final = 32
DIGEST_BYTES: Final = 32
_ID_CHARS: Final = "abcdefghijkmnpqrstuvwxyz23456789"  # nothing that is read for another
_ID_LENGTH: Final = 10
ID_BYTES: Final = 16  # the longest id
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_PUBLIC_IDS: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,15}+(?:\n[A-Za-z0-9][A-Za-z0-9._-]{0,15}+)*+")
BITS: Mapping[Scope, int] = MappingProxyType({scope: 1 << place for place, scope in enumerate(Scope)})


Time = Annotated[datetime, msgspec.Meta(tz=True)]  # with its zone


class BadRecord(ValueError):
    """A record that cannot be used; its text shows no hash."""


class KeyRecord(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A line of a keys file. One of the two hashes is there; `pepper` tells which pepper the second was made with."""

    id: str
    tenant: str
    sha256: str = ""
    hmac: str = ""
    pepper: str = ""
    label: str = ""
    scopes: list[Scope] = msgspec.field(default_factory=lambda: [Scope.INFERENCE])
    created: Time | None = None
    not_before: Time | None = None
    expires: Time | None = None
    revoked: Time | None = None


def new_key() -> str:
    """256 random bits, in characters that every header carries."""
    return PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def new_id() -> str:
    """Public: it names a key in logs and commands, and says nothing of it."""
    return "".join(secrets.choice(_ID_CHARS) for _ in range(_ID_LENGTH))


def digest_of(key: bytes, pepper: bytes | None) -> bytes:
    """What is looked up."""
    plain = hashlib.sha256(key).digest()
    return plain if pepper is None else hmac.digest(pepper, plain, "sha256")


def pepper_mark(pepper: bytes) -> str:
    """Tells one pepper from another, and no more: 32 bits of its hash."""
    return hashlib.sha256(b"penstock pepper " + pepper).hexdigest()[:8]


def sealed(key: str, record: KeyRecord, pepper: bytes | None) -> KeyRecord:
    """The record with the key's hash."""
    told = digest_of(key.encode(), pepper).hex()
    if pepper is None:
        return msgspec.structs.replace(record, sha256=told, hmac="", pepper="")
    return msgspec.structs.replace(record, sha256="", hmac=told, pepper=pepper_mark(pepper))


def stored_digest(record: KeyRecord, pepper: bytes | None, mark: str) -> bytes:
    """What a request's digest must equal; raises BadRecord where this pepper could never give it. `mark`: the pepper's."""
    told = record.sha256 or record.hmac
    try:
        found = bytes.fromhex(told)
    except ValueError:
        found = b""
    if len(found) != DIGEST_BYTES or len(told) != 2 * DIGEST_BYTES:
        raise BadRecord("neither `sha256` nor `hmac` holds 64 hexadecimal digits")
    if record.sha256:
        return found if pepper is None else hmac.digest(pepper, found, "sha256")
    if record.pepper != mark:
        raise BadRecord(
            "it was made with another auth.pepper than the one given here" if mark else "it needs auth.pepper"
        )
    return found


def stored_digests(records: Sequence[KeyRecord], pepper: bytes | None, mark: str) -> bytes:
    """Of many, behind each other."""
    if pepper is None:  # the common case, in one step
        hashes = [record.sha256 for record in records]
        if set(map(len, hashes)) == {2 * DIGEST_BYTES}:
            with suppress(ValueError):
                digests = bytes.fromhex("".join(hashes))
                if len(digests) == DIGEST_BYTES * len(hashes):
                    return digests
    return b"".join([stored_digest(record, pepper, mark) for record in records])


def good_name(name: str) -> bool:
    """Of a tenant."""
    return _NAME.fullmatch(name) is not None


def good_ids(ids: Sequence[str]) -> bool:
    """Whether all are public ids."""
    return _PUBLIC_IDS.fullmatch("\n".join(ids)) is not None


def mask_of(scopes: Sequence[Scope]) -> int:
    mask = 0
    for scope in scopes:
        mask |= BITS[scope]
    return mask
