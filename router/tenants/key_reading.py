"""Keys from where they are kept - a file, the configuration, a secret - into one index, in steps that nobody notices.

Decides what makes a store unusable; whether an unusable one matters is `router.tenants.key_store`'s business.
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Final

import msgspec

from config.tenants import Auth, InlineKey, named_secrets
from router.tenants.key_columns import ColumnsOf
from router.tenants.key_index import KeyIndex
from router.tenants.keys import BadRecord, KeyRecord, digest_of

_STEP_BYTES: Final = 64 * 1024  # some 300 records: about a millisecond, between two of which the event loop runs
_LEAST_LINE_BYTES: Final = 100  # of a record: its hash, and the names of its members
_decoder: Final = msgspec.json.Decoder(KeyRecord)


class BadStore(Exception):
    """Keys are there, or should be, and cannot be used as they are; says where and what to do."""


class Reading:
    """One reading of all sources. `steps` does the work; after the last, `index` is whole. Raises BadStore."""

    def __init__(self, auth: Auth) -> None:
        self._auth = auth
        self._columns = ColumnsOf(auth.pepper)
        self.index = KeyIndex(0)

    def whole(self) -> KeyIndex:
        """All steps at once."""
        for _ in self.steps():
            pass
        return self.index

    def steps(self) -> Iterator[None]:
        """Give control back every millisecond or so."""
        auth = self._auth
        secrets = [] if auth.secret_keys is None else named_secrets(auth.secret_keys)
        path = None if auth.keys_file is None else Path(auth.keys_file)
        self.index = KeyIndex(len(auth.keys) + len(secrets) + (0 if path is None else _room(path)))
        self._add([_record(inline) for inline in auth.keys], "auth.keys")
        self._add_secrets(secrets)
        if path is not None:
            before = len(self.index)
            yield from self._file(path)
            if len(self.index) == before:
                what = f"{path}: no keys in it; `penstock keys create --file {path} --tenant NAME` makes one"
                raise BadStore(what)

    def _file(self, path: Path) -> Iterator[None]:
        line, left = 1, b""
        try:
            with closing(path.open("rb")) as file:
                while data := file.read(_STEP_BYTES):
                    whole, newline, rest = data.rpartition(b"\n")
                    if newline:
                        self._lines(left + whole, path, line)
                        line += whole.count(b"\n") + 1
                        left = rest
                    else:
                        left += data
                    yield
                self._lines(left, path, line)
        except OSError as error:
            raise BadStore(f"{path}: {error.strerror or error}; check auth.keys_file and who may read it") from None

    def _lines(self, data: bytes, path: Path, first: int) -> None:
        try:
            records = _decoder.decode_lines(data)
        except (msgspec.DecodeError, UnicodeDecodeError):
            records = [self._record(line, path, number) for number, line in zip(count(first), data.split(b"\n"))]
        self._add(records, str(path))

    def _record(self, line: bytes, path: Path, number: int) -> KeyRecord:
        """Slowly, to say which line it is."""
        try:
            return _decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            what = f"{path}:{number}: no record of a key ({error}); restore the file, or remove the line"
            raise BadStore(what) from None

    def _add(self, records: Sequence[KeyRecord], where: str) -> None:
        if not records:
            return
        try:
            self.index.add(self._columns(records))
        except BadRecord as error:
            raise BadStore(f"{where}: {error}") from None

    def _add_secrets(self, secrets: Sequence[tuple[str, str]]) -> None:
        records = [
            KeyRecord(id=f"secret-{number}", tenant=tenant, sha256=digest_of(key.encode(), None).hex())
            for number, (tenant, key) in enumerate(secrets, 1)
        ]
        self._add(records, "auth.secret_keys")


def _room(path: Path) -> int:
    try:
        return path.stat().st_size // _LEAST_LINE_BYTES + 1
    except OSError:
        return 0  # said when it is opened


def _record(inline: InlineKey) -> KeyRecord:
    return KeyRecord(
        id=inline.id,
        tenant=inline.tenant,
        sha256=inline.sha256,
        scopes=list(inline.scopes),
        not_before=inline.not_before,
        expires=inline.expires,
    )
