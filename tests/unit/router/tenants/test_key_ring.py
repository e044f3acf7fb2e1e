"""What `penstock keys` writes in Redis, where an answer is lost on the way: a new key is never lost with it unsaid."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from router.shared.redis_line import Unreachable
from router.tenants.key_changes import KeysError, Unconfirmed
from router.tenants.key_ring import KeyRing
from router.tenants.keys import KeyRecord, digest_of
from router.tenants.keys_in_redis import Change
from tests.support.fake_keys import FakeKeys

NOW = datetime(2026, 11, 1, tzinfo=UTC)
WANTED = KeyRecord(id="", tenant="acme")


class Unsure(FakeKeys):
    """Says of no change that it is made; it is, if `writes`. Afterwards it can be read, or not."""

    def __init__(self, kind: str, *, writes: bool, reads: bool) -> None:
        super().__init__()
        self.kind, self.writes, self.reads = kind, writes, reads
        self.fails = True

    async def put(self, changes: Sequence[Change]) -> bool:
        if not self.fails:
            return self.put_now(changes)
        if self.writes:
            assert self.put_now(changes)
        self.reachable = self.reads
        raise Unreachable(self.kind, "the answer was lost")


def ring(book: FakeKeys) -> KeyRing:
    return KeyRing(lambda: book, None, lambda: NOW)


def kept(book: FakeKeys, id_: str) -> KeyRecord:
    return msgspec.json.decode(book.records[id_], type=KeyRecord)


def begun(book: Unsure) -> str:
    """The id of a key that is there already."""
    book.fails = False
    _, record = ring(book).create(WANTED)
    book.fails = True
    return record.id


@pytest.mark.parametrize("kind", ["replicas", "timeout", "connection"])
def test_what_is_written_and_not_confirmed_is_told(kind: str):
    """It is read once more: there it is, so its key is handed out, with a warning; a rotated key's end, too."""
    book = Unsure(kind, writes=True, reads=True)
    with pytest.raises(Unconfirmed, match="it is written, though") as made:
        ring(book).create(WANTED)
    assert kept(book, made.value.record.id).sha256 == digest_of(made.value.key.encode(), None).hex()
    assert made.value.old is None
    with pytest.raises(Unconfirmed, match="it is written, though") as rotated:
        ring(book).rotate(made.value.record.id, timedelta(hours=1))
    assert kept(book, rotated.value.record.id).sha256 == digest_of(rotated.value.key.encode(), None).hex()
    assert rotated.value.old == kept(book, made.value.record.id)
    assert rotated.value.old.expires == NOW + timedelta(hours=1)


def test_what_cannot_be_read_either_may_be_written():
    """Then it is said under which id, and what to do: nobody has that key."""
    for writes in (True, False):
        book = Unsure("timeout", writes=writes, reads=False)
        old = begun(book)
        with pytest.raises(KeysError, match=r"may be written all the same.* revoke it.* make another") as made:
            ring(book).create(WANTED)
        book.reachable = True
        with pytest.raises(
            KeysError, match=rf"may be written all the same.* revoke it.* rotate {old} again"
        ) as rotated:
            ring(book).rotate(old, timedelta(hours=1))
        for error in (made, rotated):
            assert any(id_ in str(error.value) for id_ in book.records if id_ != old) is writes


def test_what_is_not_written_is_said_to_be_not():
    """No answer, and it is not there: it may be done again as if nothing had been."""
    book = Unsure("timeout", writes=False, reads=True)
    old = begun(book)
    for work in (lambda: ring(book).create(WANTED), lambda: ring(book).rotate(old, timedelta(hours=1))):
        with pytest.raises(KeysError, match="nothing is written; do it again"):
            work()
    assert set(book.records) == {old}


def test_where_nobody_answers_nothing_is_begun():
    """Redis is away from the start: no word of a key that may be there."""
    book = Unsure("timeout", writes=True, reads=True)
    book.reachable = False
    with pytest.raises(KeysError) as caught:
        ring(book).create(WANTED)
    assert "written" not in str(caught.value)
    assert not book.records


def test_what_is_no_record_is_told_beside_the_list(caplog: pytest.LogCaptureFixture):
    """By its id where it has one: a gateway complains of it, and who lists the keys must find it."""
    book = FakeKeys()
    _, record = ring(book).create(WANTED)
    book.records |= {"x1": b'{"id":"x1","tenant":7}', "x2": b"{"}
    assert [listed.id for listed in ring(book).records()] == [record.id]
    assert [line.split(":")[0].split(" (")[0] for line in caplog.messages] == ["without an id", "x1"]
