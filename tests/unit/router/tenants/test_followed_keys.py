"""Keys that are kept in Redis: read, followed, and never lost to a Redis that is away, empty, half there or older than it was."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from config.tenants import Auth, Scope
from metrics.catalog import Metrics
from router.tenants.key_index import REVOKED, Columns, KeyIndex
from router.tenants.key_store import KeyStore
from router.tenants.keys import ID_BYTES, KeyRecord, digest_of
from router.tenants.keys_in_redis import Change
from tests.support.fake_keys import FakeKeys
from tests.support.virtual_time import run_virtual

PEPPER = "sixteen characters at least"


def key(number: int) -> bytes:
    return b"psk-%043d" % number


def record(number: int, **more: object) -> KeyRecord:
    digest = digest_of(key(number), None).hex()
    return KeyRecord(id=f"k{number}", tenant=f"t{number % 3}", sha256=digest, **more)  # type: ignore[arg-type]


def put(book: FakeKeys, *records: KeyRecord) -> None:
    changes = [Change(r.id, book.records.get(r.id, b""), msgspec.json.encode(r)) for r in records]
    assert book.put_now(changes)


def revoke(book: FakeKeys, number: int) -> None:
    put(book, record(number, revoked=datetime(2026, 11, 1, tzinfo=UTC)))


def filled(count: int) -> FakeKeys:
    book = FakeKeys()
    for number in range(count):
        put(book, record(number))
    return book


def store_over(book: FakeKeys, **auth: object) -> KeyStore:
    return KeyStore(Auth.model_validate(auth), Metrics.create(CollectorRegistry()), book)


@asynccontextmanager
async def watched(book: FakeKeys, **auth: object) -> AsyncIterator[KeyStore]:
    store = store_over(book, **auth)
    await store.begin()
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(store.watch())
        yield store
        watching.cancel()


def good(store: KeyStore, *numbers: int) -> list[bool]:
    found = [store.find(key(number)) for number in numbers]
    return [one is not None and not one.mask & REVOKED for one in found]


def state(store: KeyStore) -> object:
    document = store.document()
    assert document is not None
    return document["state"]


def test_all_are_read_and_every_change_is_followed():
    """Pages first; then a new key, a revoked one and many at once, heard of at once; nothing is read twice for it."""

    async def main() -> None:
        book = filled(35)
        async with watched(book) as store:
            assert good(store, *range(35)) == [True] * 35
            assert (store.ready, store.knows_all, state(store)) == (True, True, "ok")
            await asyncio.sleep(0.1)
            put(book, record(35))
            revoke(book, 3)
            await asyncio.sleep(0.01)
            assert good(store, 3, 35) == [False, True]
            put(book, *(record(number) for number in range(36, 900)))
            await asyncio.sleep(0.05)
            assert all(good(store, *range(36, 900)))
            assert store._metrics.keys.labels().value == 900
            assert store.find(b"psk-of-nobody") is None
            assert store.knows_all

    run_virtual(main())


def test_a_change_comes_within_a_second_without_a_message():
    """Subscriptions get lost; looks do not."""

    async def main() -> None:
        book = filled(5)
        book.messages = False
        async with watched(book) as store:
            for number in range(5):
                await asyncio.sleep(0.7)
                revoke(book, number)
                await asyncio.sleep(0.5)
                assert good(store, number) == [False]

    run_virtual(main())


def test_without_redis_the_last_keys_stay(caplog: pytest.LogCaptureFixture):
    """Out of reach for a minute: those that were good are good, nobody else is told that his key is wrong, and it is said once."""

    async def main() -> None:
        book = filled(5)
        async with watched(book) as store:
            await asyncio.sleep(1)
            book.reachable = False
            await asyncio.sleep(60)
            assert good(store, *range(5)) == [True] * 5
            assert (store.ready, store.knows_all, store.problem(), state(store)) == (True, False, None, "unreachable")
            assert store._metrics.keys_stale.labels().value == 1
            assert store._metrics.redis_errors_total.labels("timeout").value > 10
            revoke(book, 1)  # by somebody who reaches it
            book.reachable = True
            await asyncio.sleep(1)
            assert good(store, 0, 1) == [True, False]
            assert store.knows_all
            assert store._metrics.keys_stale.labels().value == 0

    with caplog.at_level(logging.ERROR, logger="penstock.keys"):
        run_virtual(main())
    assert [r.getMessage().count("those that were good stay so") for r in caplog.records] == [1]


def test_who_has_never_read_keys_refuses_nobody():
    """Started without Redis, or with an empty one: not ready, and no key is called wrong; then all is as it should be."""

    async def main() -> None:
        for empty in (False, True):
            book = filled(0 if empty else 3)
            book.reachable = empty
            async with watched(book) as store:
                await asyncio.sleep(3)
                assert (store.ready, store.knows_all, state(store)) == (False, False, "unread")
                problem = store.problem()
                assert problem is not None
                assert ("penstock keys create --redis" if empty else "does not answer") in problem
                if empty:
                    put(book, record(0), record(1), record(2))
                book.reachable = True
                await asyncio.sleep(6)
                assert good(store, 0, 1, 2) == [True] * 3
                assert (store.ready, store.knows_all, store.problem()) == (True, True, None)

    run_virtual(main())


def test_a_redis_that_has_lost_keys_takes_none_away(caplog: pytest.LogCaptureFixture):
    """Emptied, or emptied and begun anew: what was good stays good, what was revoked stays revoked, what is new is good; restored, all is well."""

    async def main() -> None:
        book = filled(40)
        revoke(book, 7)
        whole = book.saved()
        async with watched(book) as store:
            await asyncio.sleep(1)
            for begun_anew in (False, True):
                book.lose_everything()
                if begun_anew:
                    put(book, record(100))
                await asyncio.sleep(6)
                assert good(store, *range(7), 7, *range(8, 40)) == [True] * 7 + [False] + [True] * 32
                assert good(store, 100) == [begun_anew]
                assert (store.ready, store.knows_all, state(store)) == (True, False, "lost_keys")
            revoke(book, 100)
            await asyncio.sleep(1)
            assert good(store, 100, 1) == [False, True]
            book.restore(whole)
            put(book, record(100))
            await asyncio.sleep(6)
            assert good(store, 100, 1, 7) == [False, True, False]  # revoked once is revoked
            assert store.knows_all

    with caplog.at_level(logging.ERROR, logger="penstock.keys"):
        run_virtual(main())
    assert "39 keys are not there any more" in caplog.text


def test_a_failover_that_forgets_the_last_changes():
    """Another server, as things were before; the same counter goes on with other changes: none is missed, a revoked key stays so."""

    async def main() -> None:
        book = filled(20)
        async with watched(book) as store:
            await asyncio.sleep(1)
            before = book.saved()
            revoke(book, 1)
            put(book, record(20))
            await asyncio.sleep(1)
            book.restore(before)
            put(book, record(21))
            revoke(book, 2)
            put(book, record(22))
            await asyncio.sleep(6)
            assert good(store, 0, 1, 2, 20, 21, 22) == [True, False, False, True, True, True]
            assert state(store) == "lost_keys"  # the one that was made and forgotten

    run_virtual(main())


def test_half_a_reading_is_none():
    """The way breaks between two pages, or pages come short: what was in force stays, and all is read again."""

    async def main() -> None:
        book = filled(40)
        fresh = store_over(book)

        def breaks() -> None:
            book.reachable = False

        book.between = breaks
        await fresh.begin()
        assert not fresh.ready
        book.between, book.reachable = (lambda: None), True

        async with watched(book) as store:
            hidden = dict(list(book.records.items())[20:])

            def shorter() -> None:  # a server that forgets while it is read
                for id_ in hidden:
                    book.records.pop(id_, None)
                book.between = back

            def back() -> None:
                book.records |= hidden

            book.between = shorter
            book.log.clear()
            put(book, record(0, label="changed"))
            await asyncio.sleep(2)
            assert good(store, *range(40)) == [True] * 40
            book.between = lambda: None
            await asyncio.sleep(12)
            assert store.knows_all

    run_virtual(main())


def test_keys_that_change_while_they_are_read():
    """A revocation between two pages counts, whichever page its key was on; so does a new key."""

    async def main() -> None:
        book, numbers = filled(40), iter((35, 2, 39))

        def changes() -> None:
            number = next(numbers, None)
            if number is not None:
                revoke(book, number)
                put(book, record(100 + number))

        book.between = changes
        async with watched(book) as store:
            assert good(store, 35, 2, 39, 135, 102, 139, 0) == [False] * 3 + [True] * 4
            assert store.knows_all

    run_virtual(main())


def test_a_long_reading_holds_no_change_up():
    """While all is read again, which takes ten seconds here, a revocation is known within one, and is not undone when the reading ends."""

    async def main() -> None:
        book = filled(200)
        async with watched(book) as store:
            book.page_s = 0.5
            store.read_again()
            for number in (3, 150, 77):
                await asyncio.sleep(2)
                revoke(book, number)
                await asyncio.sleep(1)
                assert good(store, number) == [False]
            await asyncio.sleep(10)
            assert good(store, 3, 150, 77, 4) == [False, False, False, True]
            assert store.knows_all

    run_virtual(main())


def test_a_record_that_cannot_be_used_takes_no_other_along(caplog: pytest.LogCaptureFixture):
    """Broken ones, and one of another pepper, are named; the rest is good. Nobody is told that his key is wrong while it may be one of those."""

    async def main() -> None:
        book = filled(5)
        book.records |= {"x1": b'{"id":"x1","tenant":', "x2": msgspec.json.encode(KeyRecord(id="x2", tenant="t"))}
        put(book, KeyRecord(id="x3", tenant="t", hmac="ab" * 32, pepper="ffffffff"))
        async with watched(book, keys=[]) as store:
            assert good(store, *range(5)) == [True] * 5
            assert (store.ready, store.knows_all, state(store)) == (True, False, "bad_records")
            put(book, msgspec.structs.replace(record(0), sha256="abc"))
            await asyncio.sleep(1)
            assert good(store, 0) == [True]  # as it was
            put(book, record(0))
            await asyncio.sleep(1)
            for id_ in ("x1", "x2", "x3"):
                del book.records[id_]
            await asyncio.sleep(6)
            assert store.knows_all

    with caplog.at_level(logging.ERROR, logger="penstock.keys"):
        run_virtual(main())
    assert "3 records cannot be used" in caplog.text
    assert "x2: neither" in caplog.text
    assert "ab" * 32 not in caplog.text


def test_a_revoked_record_that_cannot_be_used_is_just_over():
    """Whatever is wrong with it: it lets nobody in, not even who it let in before somebody broke it, and leaves no doubt about other keys."""

    async def main() -> None:
        book = filled(3)
        put(
            book,
            KeyRecord(
                id="old", tenant="t", hmac="ab" * 32, pepper="ffffffff", revoked=datetime(2026, 11, 1, tzinfo=UTC)
            ),
        )
        async with watched(book, keys=[]) as store:
            assert (store.knows_all, state(store)) == (True, "ok")
            put(book, msgspec.structs.replace(record(0), sha256="abc", revoked=datetime(2026, 11, 1, tzinfo=UTC)))
            await asyncio.sleep(1)
            assert good(store, 0, 1, 2) == [False, True, True]
            assert (store.knows_all, state(store)) == (True, "ok")
            store.read_again()
            await asyncio.sleep(1)
            assert good(store, 0, 1, 2) == [False, True, True]
            assert (store.knows_all, state(store)) == (True, "ok")

    run_virtual(main())


def test_only_a_whole_id_ends_a_key():
    """A broken, revoked record whose id begins as another's, is empty or is none at all ends nobody else's key."""
    index, digest = KeyIndex(2), b"d" * 32
    id_ = "i" * ID_BYTES
    index.add(Columns(digest, [id_], ["t"], [1], [0.0], [9e9]))
    for other in (id_ + "x", "", id_ + "\n" + id_, id_[:-1], "\u00e9" * ID_BYTES):
        assert len(list(index.revoke([other]))) == 1
        assert mask_in(index, digest) == 1, other
    assert len(list(index.revoke([id_]))) == 1
    assert mask_in(index, digest) == 1 | REVOKED


def mask_in(index: KeyIndex, digest: bytes) -> int:
    found = index.find(digest)
    assert found is not None
    return found.mask


def test_what_is_kept_twice_is_good_while_both_say_so():
    """A key of the configuration that is revoked in Redis is revoked; each source's own keys are known."""
    inline = [{"id": f"i{n}", "tenant": "inline", "sha256": digest_of(key(n), None).hex()} for n in (0, 50)]

    async def main() -> None:
        book = filled(3)
        async with watched(book, keys=inline) as store:
            assert good(store, 0, 1, 50) == [True] * 3
            revoke(book, 0)
            await asyncio.sleep(1)
            assert good(store, 0, 1, 50) == [False, True, True]
            assert store._metrics.keys.labels().value == 5

    run_virtual(main())


def test_a_broken_file_takes_nothing_from_redis(tmp_path: Path):
    """Each source fails alone: the other's changes still come."""
    path = tmp_path / "keys.jsonl"
    path.write_bytes(msgspec.json.encode(record(60)) + b"\n")

    async def main() -> None:
        book = filled(3)
        async with watched(book, keys_file=str(path)) as store:
            path.write_text("{")
            await asyncio.sleep(4)
            assert not store.knows_all
            put(book, record(3))
            await asyncio.sleep(1)
            assert good(store, 3, 60) == [True, True]

    run_virtual(main())


def test_a_pepper_comes_later_here_too():
    """Plain hashes in Redis are found under a pepper."""

    async def main() -> None:
        async with watched(filled(3), pepper=PEPPER, keys_redis={"url": "redis://nobody:1"}) as store:
            assert good(store, 0, 2) == [True, True]

    run_virtual(main())


def test_ends_are_ends():
    """A rotated key's nearer end is followed; one that is over is not missed when it is taken away by hand."""

    async def main() -> None:
        now = datetime.now(UTC)
        book = filled(3)
        put(book, record(1, expires=now - timedelta(days=1)))
        async with watched(book) as store:
            put(book, record(0, expires=now + timedelta(days=1)))
            await asyncio.sleep(1)
            found = store.find(key(0))
            assert found is not None
            assert found.ends_s == (now + timedelta(days=1)).timestamp()
            del book.records["k1"]
            await asyncio.sleep(6)
            assert store.knows_all
            found = store.find(
                key(1)
            )  # still known as what it was: an older copy may have it, and its end was not always so near
            assert found is not None
            assert found.ends_s == (now - timedelta(days=1)).timestamp()

    run_virtual(main())


@pytest.mark.parametrize("between", ["emptied", "nothing"])
def test_an_older_copy_makes_no_key_good_again(between: str):
    """Keys that were revoked or have ended since; lost, or not, before yesterday's copy is put there: they stay so, and are not missed."""

    async def main() -> None:
        now = datetime.now(UTC)
        book = filled(5)
        yesterday = book.saved()
        revoke(book, 1)
        put(book, record(2, expires=now - timedelta(hours=1)))
        put(book, record(3, expires=now + timedelta(hours=1)))
        async with watched(book) as store:
            if between == "emptied":
                for _ in range(2):  # what came from one index to the next goes on to the one after it
                    book.lose_everything()
                    put(book, record(100))
                    await asyncio.sleep(6)
                trouble = store._followed.trouble  # type: ignore[union-attr]
                assert trouble is not None
                assert trouble.startswith("3 keys are not there any more")
            book.restore(yesterday)
            if between == "emptied":
                put(book, record(100))
            await asyncio.sleep(6)
            assert store.knows_all
            assert good(store, 0, 1, 4) == [True, False, True]
            ended, ends = store.find(key(2)), store.find(key(3))
            assert ended is not None
            assert ended.ends_s == (now - timedelta(hours=1)).timestamp()
            assert ends is not None
            assert ends.ends_s == (now + timedelta(hours=1)).timestamp()
            put(book, record(2, label="changed"), record(3, expires=now + timedelta(days=9)))  # in that copy
            await asyncio.sleep(1)
            assert (store.find(key(2)), store.find(key(3))) == (ended, ends)

    run_virtual(main())


def test_what_is_taken_over_is_counted_once_however_it_was_called():
    """A key under two ids, of which one was revoked, and one that has other rows behind it: each comes once, with its nearest end."""

    def columns(*rows: tuple[int, str, int, float]) -> Columns:
        digests = b"".join(digest_of(key(number), None) for number, *_ in rows)
        ids, masks, ends = [r[1] for r in rows], [r[2] for r in rows], [r[3] for r in rows]
        return Columns(digests, ids, ["t"] * len(rows), masks, [0.0] * len(rows), ends)

    old, new = KeyIndex(10), KeyIndex(10)
    old.join(
        columns((1, "a", 1, 50.0), (1, "b", 1, 40.0), (2, "c", 1 | REVOKED, 90.0), (2, "d", 1, 90.0), (3, "e", 1, 5.0))
    )
    new.join(columns((3, "e", 1, 90.0)))
    assert list(new.take_over(old, now_s=10.0)) == [1]
    assert len(new) == 3
    found = [new.find(digest_of(key(number), None)) for number in (1, 2, 3)]
    assert [one and (one.ends_s, bool(one.mask & REVOKED)) for one in found] == [
        (40.0, False),
        (90.0, True),
        (5.0, False),
    ]


def test_more_keys_than_there_was_room_for():
    """An index that fills up is made anew, larger; nobody is unknown meanwhile."""

    async def main() -> None:
        book = filled(3)
        async with watched(book) as store:
            for first in range(0, 4000, 100):
                put(book, *(record(number) for number in range(first + 10, first + 110)))
                await asyncio.sleep(1)
                assert good(store, 0, first + 109) == [True, True]
            assert isinstance(store._followed._index, KeyIndex)  # type: ignore[union-attr]
            assert store._followed._index.has_room  # type: ignore[union-attr]

    run_virtual(main())


def test_scopes_are_followed():
    """What a key is good for is as the record says now."""

    async def main() -> None:
        book = filled(1)
        async with watched(book) as store:
            put(book, record(0, scopes=[Scope.METRICS]))
            await asyncio.sleep(1)
            found = store.find(key(0))
            assert found is not None
            assert found.mask == 1 << list(Scope).index(Scope.METRICS)

    run_virtual(main())
