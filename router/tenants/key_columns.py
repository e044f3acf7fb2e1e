"""Records of keys into columns of the index, many at once; decides what a record must say to be used. Pure."""

from collections.abc import Sequence
from math import inf
from typing import Final

from config.tenants import Scope
from router.tenants.key_index import REVOKED, Columns
from router.tenants.keys import (
    ID_BYTES,
    BadRecord,
    KeyRecord,
    good_ids,
    good_name,
    mask_of,
    pepper_mark,
    stored_digests,
)

_INFERENCE: Final = [Scope.INFERENCE]
_INFERENCE_MASK: Final = mask_of(_INFERENCE)


class ColumnsOf:
    """Under one pepper; remembers which tenants' names are good."""

    def __init__(self, pepper: str | None) -> None:
        self._pepper = None if pepper is None else pepper.encode()
        self._mark = "" if self._pepper is None else pepper_mark(self._pepper)
        self._tenants: set[str] = set()

    def __call__(self, records: Sequence[KeyRecord]) -> Columns:
        """Raises BadRecord where one of them cannot be used. A column at a time: a million keys are read in seconds."""
        self._check(records)
        return Columns(
            digests=stored_digests(records, self._pepper, self._mark),
            ids=[record.id for record in records],
            tenants=[record.tenant for record in records],
            masks=[_mask(record) for record in records],
            starts_s=[-inf if record.not_before is None else record.not_before.timestamp() for record in records],
            ends_s=[inf if record.expires is None else record.expires.timestamp() for record in records],
        )

    def _check(self, records: Sequence[KeyRecord]) -> None:
        if not good_ids([record.id for record in records]):
            bad = next(record.id for record in records if not good_ids([record.id]))
            raise BadRecord(f"`id` {bad[:32]!r} must be 1 to {ID_BYTES} letters, digits, dots, dashes or underscores")
        for tenant in {record.tenant for record in records} - self._tenants:
            if not good_name(tenant):
                what = f"`tenant` {tenant[:80]!r} must be 1 to 63 letters, digits, dots, dashes or underscores"
                raise BadRecord(what)
            self._tenants.add(tenant)


def _mask(record: KeyRecord) -> int:
    mask = _INFERENCE_MASK if record.scopes == _INFERENCE else mask_of(record.scopes)
    return mask if record.revoked is None else mask | REVOKED
