"""The keys file as `penstock keys` writes it: one writer at a time, put in place whole, readable by its owner only.

Whoever reads it sees the file before or after, never between. Lines that are not touched stay as they are, byte for byte.
"""

import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec

from config.tenants import Scope
from router.tenants.keys import KeyRecord, new_id, new_key, sealed

_MODE: Final = 0o600


class KeysFileError(Exception):
    """What was asked cannot be done; nothing has changed."""


class KeysFile:
    """One file. `now`: of the calendar, with its zone."""

    def __init__(self, path: Path, pepper: bytes | None, now: Callable[[], datetime]) -> None:
        self._path = Path(os.path.realpath(path))  # a link stays one
        self._pepper = pepper
        self._now = now

    def records(self) -> list[KeyRecord]:
        return [record for _, record in self._read()]

    def create(
        self,
        tenant: str,
        scopes: list[Scope],
        *,
        label: str = "",
        not_before: datetime | None = None,
        expires: datetime | None = None,
    ) -> tuple[str, KeyRecord]:
        """A new key, told only now, and its record."""
        with self._locked():
            lines = self._read(missing_ok=True)
            record = KeyRecord(
                id=self._fresh_id(lines),
                tenant=tenant,
                label=label,
                scopes=scopes,
                created=self._now(),
                not_before=not_before,
                expires=expires,
            )
            return self._added(lines, record)

    def revoke(self, id_: str) -> KeyRecord:
        """From the moment a gateway reads it on, within three seconds. A key that is revoked already stays so."""
        with self._locked():
            lines = self._read()
            at, record = self._find(lines, id_)
            if record.revoked is None:
                record = msgspec.structs.replace(record, revoked=self._now())
                lines[at] = (msgspec.json.encode(record), record)
                self._write(lines)
            return record

    def rotate(self, id_: str, overlap: timedelta) -> tuple[str, KeyRecord, KeyRecord]:
        """A new key for the same, the new record, and the old one, which is good for `overlap` more."""
        with self._locked():
            lines = self._read()
            at, old = self._find(lines, id_)
            now = self._now()
            if old.revoked is not None or (old.expires is not None and old.expires <= now):
                raise KeysFileError(f"{id_} is not good any more; `penstock keys create` makes a new one")
            ends = now + overlap
            ended = msgspec.structs.replace(old, expires=ends if old.expires is None else min(ends, old.expires))
            lines[at] = (msgspec.json.encode(ended), ended)
            fresh = msgspec.structs.replace(old, id=self._fresh_id(lines), created=now, not_before=None)
            return *self._added(lines, fresh), ended

    def _added(self, lines: list[tuple[bytes, KeyRecord]], record: KeyRecord) -> tuple[str, KeyRecord]:
        key = new_key()
        record = sealed(key, record, self._pepper)
        lines.append((msgspec.json.encode(record), record))
        self._write(lines)
        return key, record

    def _fresh_id(self, lines: list[tuple[bytes, KeyRecord]]) -> str:
        taken = {record.id for _, record in lines}
        return next(id_ for id_ in iter(new_id, "") if id_ not in taken)

    def _find(self, lines: list[tuple[bytes, KeyRecord]], id_: str) -> tuple[int, KeyRecord]:
        for at, (_, record) in enumerate(lines):
            if record.id == id_:
                return at, record
        raise KeysFileError(f"no key is called {id_!r} in {self._path}; `penstock keys list` shows them")

    def _read(self, *, missing_ok: bool = False) -> list[tuple[bytes, KeyRecord]]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            if missing_ok:
                return []
            raise KeysFileError(f"{self._path} is not there; `penstock keys create` makes it") from None
        except OSError as error:
            raise KeysFileError(f"{self._path}: {error.strerror or error}") from None
        found = []
        for number, line in enumerate(data.split(b"\n"), 1):
            if line.strip():
                try:
                    found.append((line, msgspec.json.decode(line, type=KeyRecord)))
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    what = f"{self._path}:{number}: no record of a key ({error}); nothing is written over it"
                    raise KeysFileError(what) from None
        return found

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Against a second writer, which waits."""
        lock = self._path.with_name(self._path.name + ".lock")
        try:
            held = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, _MODE)
        except OSError as error:
            raise KeysFileError(f"{lock}: {error.strerror or error}; the folder must be there and writable") from None
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield
        finally:
            os.close(held)

    def _write(self, lines: list[tuple[bytes, KeyRecord]]) -> None:
        try:
            handle, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)  # of mode 0600
        except OSError as error:
            raise KeysFileError(f"{self._path.parent}: {error.strerror or error}") from None
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(line + b"\n" for line, _ in lines)
                self._keep_owner(file.fileno())
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._path)
        except OSError as error:
            Path(name).unlink(missing_ok=True)
            raise KeysFileError(f"{self._path}: {error.strerror or error}") from None
        folder = os.open(self._path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _keep_owner(self, file: int) -> None:
        """Root may write for the gateway's user, who must be able to read it then."""
        try:
            before = self._path.stat()
        except OSError:
            return
        if os.geteuid() == 0:
            os.fchown(file, before.st_uid, before.st_gid)
