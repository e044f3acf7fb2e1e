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

from router.tenants.key_changes import KeysError, fresh_id, made, revoked, rotated
from router.tenants.keys import KeyRecord

_MODE: Final = 0o600


class KeysFile:
    """One file. `now`: of the calendar, with its zone."""

    def __init__(self, path: Path, pepper: bytes | None, now: Callable[[], datetime]) -> None:
        self._path = Path(os.path.realpath(path))  # a link stays one
        self._pepper = pepper
        self._now = now

    def records(self) -> list[KeyRecord]:
        return [record for _, record in self._read()]

    def create(self, record: KeyRecord) -> tuple[str, KeyRecord]:
        """A new key, told only now, and its record: as given, with an id and a hash."""
        with self._locked():
            lines = self._read(missing_ok=True)
            record = msgspec.structs.replace(record, id=_fresh_id(lines), created=self._now())
            key, record = made(record, self._pepper)
            self._write([*lines, (msgspec.json.encode(record), record)])
            return key, record

    def revoke(self, id_: str) -> KeyRecord:
        """From the moment a gateway reads it on, within three seconds. A key that is revoked already stays so."""
        with self._locked():
            lines = self._read()
            at, record = self._find(lines, id_)
            if record.revoked is None:
                record = revoked(record, self._now())
                lines[at] = (msgspec.json.encode(record), record)
                self._write(lines)
            return record

    def rotate(self, id_: str, overlap: timedelta) -> tuple[str, KeyRecord, KeyRecord]:
        """A new key for the same, the new record, and the old one, which is good for `overlap` more."""
        with self._locked():
            lines = self._read()
            at, old = self._find(lines, id_)
            key, fresh, ended = rotated(old, _fresh_id(lines), overlap, self._now(), self._pepper)
            lines[at] = (msgspec.json.encode(ended), ended)
            self._write([*lines, (msgspec.json.encode(fresh), fresh)])
            return key, fresh, ended

    def _find(self, lines: list[tuple[bytes, KeyRecord]], id_: str) -> tuple[int, KeyRecord]:
        for at, (_, record) in enumerate(lines):
            if record.id == id_:
                return at, record
        raise KeysError(f"no key is called {id_!r} in {self._path}; `penstock keys list` shows them")

    def _read(self, *, missing_ok: bool = False) -> list[tuple[bytes, KeyRecord]]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            if missing_ok:
                return []
            raise KeysError(f"{self._path} is not there; `penstock keys create` makes it") from None
        except OSError as error:
            raise KeysError(f"{self._path}: {error.strerror or error}") from None
        found = []
        for number, line in enumerate(data.split(b"\n"), 1):
            if line.strip():
                try:
                    found.append((line, msgspec.json.decode(line, type=KeyRecord)))
                except (msgspec.DecodeError, UnicodeDecodeError) as error:
                    what = f"{self._path}:{number}: no record of a key ({error}); nothing is written over it"
                    raise KeysError(what) from None
        return found

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Against a second writer, which waits."""
        lock = self._path.with_name(self._path.name + ".lock")
        try:
            held = os.open(lock, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, _MODE)
        except OSError as error:
            raise KeysError(f"{lock}: {error.strerror or error}; the folder must be there and writable") from None
        try:
            fcntl.flock(held, fcntl.LOCK_EX)
            yield
        finally:
            os.close(held)

    def _write(self, lines: list[tuple[bytes, KeyRecord]]) -> None:
        try:
            handle, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)  # of mode 0600
        except OSError as error:
            raise KeysError(f"{self._path.parent}: {error.strerror or error}") from None
        try:
            with os.fdopen(handle, "wb") as file:
                file.writelines(line + b"\n" for line, _ in lines)
                self._keep_owner(file.fileno())
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._path)
        except OSError as error:
            Path(name).unlink(missing_ok=True)
            raise KeysError(f"{self._path}: {error.strerror or error}") from None
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


def _fresh_id(lines: list[tuple[bytes, KeyRecord]]) -> str:
    return fresh_id({record.id for _, record in lines}.__contains__)
