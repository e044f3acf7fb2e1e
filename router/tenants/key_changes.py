"""What `penstock keys` does to records, wherever they are kept. Pure."""

from collections.abc import Callable
from datetime import datetime, timedelta

import msgspec

from router.tenants.keys import KeyRecord, new_id, new_key, sealed


class KeysError(Exception):
    """What was asked cannot be done; nothing has changed, unless it says so."""


class Unconfirmed(Exception):
    """A new key is written, but may be lost again; it is told only now. `old`: the one in whose place it is."""

    def __init__(self, why: str, key: str, record: KeyRecord, old: KeyRecord | None = None) -> None:
        super().__init__(why)
        self.key = key
        self.record = record
        self.old = old


def fresh_id(taken: Callable[[str], bool]) -> str:
    return next(id_ for id_ in iter(new_id, "") if not taken(id_))


def made(record: KeyRecord, pepper: bytes | None) -> tuple[str, KeyRecord]:
    """A new key, and the record with its hash."""
    key = new_key()
    return key, sealed(key, record, pepper)


def revoked(record: KeyRecord, now: datetime) -> KeyRecord:
    """One that is revoked already stays as it is."""
    return record if record.revoked is not None else msgspec.structs.replace(record, revoked=now)


def rotated(
    old: KeyRecord, id_: str, overlap: timedelta, now: datetime, pepper: bytes | None
) -> tuple[str, KeyRecord, KeyRecord]:
    """A new key for the same, its record, and the old one, which is good for `overlap` more. Raises KeysError."""
    if old.revoked is not None or (old.expires is not None and old.expires <= now):
        raise KeysError(f"{old.id} is not good any more; `penstock keys create` makes a new one")
    ends = now + overlap
    ended = msgspec.structs.replace(old, expires=ends if old.expires is None else min(ends, old.expires))
    key, fresh = made(msgspec.structs.replace(old, id=id_, created=now, not_before=None), pepper)
    return key, fresh, ended
