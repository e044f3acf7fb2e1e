"""Keys and where they are kept: made, hashed, read, looked up; never shown again, never lost to a bad file."""

import asyncio
import json
import logging
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from config.tenants import Auth, Scope
from metrics.catalog import Metrics
from router.tenants import key_index
from router.tenants.key_changes import KeysError
from router.tenants.key_file import KeysFile
from router.tenants.key_index import KeyIndex
from router.tenants.key_reading import BadStore, Reading
from router.tenants.key_store import KeyStore
from router.tenants.keys import BadRecord, KeyRecord, digest_of, new_key
from tests.support.virtual_time import run_virtual

NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)
PEPPER = b"sixteen characters at least"


def keys_file(path: Path, pepper: bytes | None = None) -> KeysFile:
    return KeysFile(path, pepper, lambda: NOW)


def wanted(tenant: str, scopes: list[Scope], **more: object) -> KeyRecord:
    """As `penstock keys create` is told."""
    return KeyRecord(id="", tenant=tenant, scopes=scopes, **more)  # type: ignore[arg-type]


def read(path: Path, **auth: object) -> KeyIndex:
    return Reading(Auth.model_validate({"keys_file": str(path), **auth})).whole()


def test_a_key_is_found_by_its_hash_alone(tmp_path: Path):
    """A key has 256 random bits and its prefix; the file never holds it, and finds it."""
    path = tmp_path / "keys.jsonl"
    key, record = keys_file(path).create(wanted("acme", [Scope.INFERENCE, Scope.METRICS], label="ci"))
    assert key.startswith("psk-")
    assert len(key) == 4 + 43  # base64url of 32 bytes
    assert key not in path.read_text()
    found = read(path).find(digest_of(key.encode(), None))
    assert found is not None
    assert (found.id, found.tenant) == (record.id, "acme")
    assert found.mask & key_index.REVOKED == 0
    assert read(path).find(digest_of(new_key().encode(), None)) is None


def test_the_file_is_its_owner_s_alone(tmp_path: Path):
    """Mode 0600, from its first byte on and after every change, and the lock's, too."""
    path = tmp_path / "keys.jsonl"
    _, record = keys_file(path).create(wanted("acme", [Scope.INFERENCE]))
    keys_file(path).revoke(record.id)
    assert {stat.S_IMODE(entry.stat().st_mode) for entry in tmp_path.iterdir()} == {0o600}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["keys.jsonl", "keys.jsonl.lock"]


def test_a_link_stays_one(tmp_path: Path):
    """What a symbolic link points to is replaced, not the link."""
    target, link = tmp_path / "real.jsonl", tmp_path / "keys.jsonl"
    link.symlink_to(target)
    keys_file(link).create(wanted("acme", [Scope.INFERENCE]))
    assert link.is_symlink()
    assert len(read(target)) == 1


def test_two_writers_lose_nothing(tmp_path: Path):
    """Eight commands at once make eight keys: they take turns."""
    path = tmp_path / "keys.jsonl"
    code = f"from router.keys_command import create; from pathlib import Path; [create(tenant='t', file=Path({str(path)!r})) for _ in range(5)]"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) for _ in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    assert len(read(path)) == 20


def test_rotation_overlaps(tmp_path: Path):
    """The new key does what the old one did; the old one ends after the overlap, and not later than it would have anyway."""
    path, file = tmp_path / "keys.jsonl", keys_file(tmp_path / "keys.jsonl")
    key, old = file.create(wanted("acme", [Scope.ADMIN_READ], label="l", expires=NOW + timedelta(hours=1)))
    fresh_key, fresh, ended = file.rotate(old.id, timedelta(hours=24))
    assert ended.expires == old.expires
    assert (fresh.tenant, fresh.scopes, fresh.label) == ("acme", [Scope.ADMIN_READ], "l")
    index = read(path)
    assert [index.find(digest_of(k.encode(), None)) is not None for k in (key, fresh_key)] == [True, True]
    file.revoke(fresh.id)
    with pytest.raises(KeysError, match="not good any more"):
        file.rotate(fresh.id, timedelta(hours=1))


def test_lines_that_are_not_touched_stay(tmp_path: Path):
    """Members that this version does not know, and their order, outlive a change to another line."""
    path = tmp_path / "keys.jsonl"
    strange = '{"zzz": 1,  "id":"old", "tenant":"t","sha256":"' + "ab" * 32 + '"}'
    path.write_text(strange + "\n")
    keys_file(path).create(wanted("acme", [Scope.INFERENCE]))
    assert path.read_text().split("\n")[0] == strange


def test_a_pepper_may_come_later(tmp_path: Path):
    """Plain hashes go on to work under a pepper; those made with it work only with that one, and the refusal says so."""
    path = tmp_path / "keys.jsonl"
    plain, _ = keys_file(path).create(wanted("a", [Scope.INFERENCE]))
    peppered, _ = keys_file(path, PEPPER).create(wanted("b", [Scope.INFERENCE]))
    index = read(path, pepper=PEPPER.decode())
    tenants = [found.tenant for key in (plain, peppered) if (found := index.find(digest_of(key.encode(), PEPPER)))]
    assert tenants == ["a", "b"]
    with pytest.raises(BadStore, match="another auth"):
        read(path, pepper="another pepper, as long")
    with pytest.raises(BadStore, match="it needs auth"):
        read(path)


GOOD = '{"id":"k1","tenant":"t","sha256":"' + "ab" * 32 + '"}\n'


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no keys in it"),
        ("\n\n", "no keys in it"),
        (GOOD + '{"id":"k2","ten', ":2: no record of a key"),
        (GOOD + "\x00\x01\n", ":2: no record of a key"),
        ('{"id":"k1","tenant":"t","sha256":"abc"}\n', "64 hexadecimal digits"),
        ('{"id":"k1","tenant":"t"}\n', "64 hexadecimal digits"),
        (GOOD.replace("k1", "a b"), "`id`"),
        (GOOD.replace('"t"', '"t\\u0000"'), "`tenant`"),
        (GOOD.replace("}", ',"expires":"2027-01-01T00:00:00"}'), "no record of a key"),
        (GOOD.replace("}", ',"scopes":["root"]}'), "no record of a key"),
        (GOOD + GOOD.replace("k1", "k2"), "k2 and k1 are the same key"),
    ],
)
def test_a_bad_file_is_told_where(tmp_path: Path, text: str, says: str):
    """Whatever is wrong with a file is said with its place and without any hash, and no key of it is used."""
    path = tmp_path / "keys.jsonl"
    path.write_text(text)
    with pytest.raises(BadStore, match="(?s)" + says.replace("`", ".")) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "ab" * 32 not in str(caught.value)


def test_all_sources_are_one_store(tmp_path: Path):
    """Keys from the file, the configuration and a secret are known together; the same key twice is refused."""
    path = tmp_path / "keys.jsonl"
    key, _ = keys_file(path).create(wanted("file", [Scope.INFERENCE]))
    inline = {"id": "i1", "tenant": "inline", "sha256": digest_of(b"inline-key-0123456789", None).hex()}
    index = read(path, keys=[inline], secret_keys="env-tenant=secret-key-0123456789, other=another-key-0123456789")
    told = [b"inline-key-0123456789", b"secret-key-0123456789", b"another-key-0123456789", key.encode()]
    found = [index.find(digest_of(each, None)) for each in told]
    assert [one.tenant for one in found if one is not None] == ["inline", "env-tenant", "other", "file"]
    with pytest.raises(BadStore, match="are the same key"):
        read(path, secret_keys="a=secret-key-0123456789 b=secret-key-0123456789")


def test_a_miss_does_what_a_hit_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Exactly one whole comparison, in constant time, whether a digest is there or not (a lookup by equality would leak where it differs)."""
    path = tmp_path / "keys.jsonl"
    keys = [keys_file(path).create(wanted("t", [Scope.INFERENCE]))[0] for _ in range(20)]
    index, compared = read(path), []
    honest = key_index.compare_digest

    def counting(a: bytes, b: bytes) -> bool:
        compared.append(len(b))
        return honest(a, b)

    monkeypatch.setattr(key_index, "compare_digest", counting)
    for key in [*keys, *(new_key() for _ in range(20))]:
        index.find(digest_of(key.encode(), None))
    assert compared == [32] * 40


def test_a_collision_of_heads_is_no_hit():
    """Two digests that begin with the same eight bytes are different keys: the second is not taken for the first."""
    index = KeyIndex(1)
    digest = bytes(range(32))
    index.add(key_index.Columns(digest, ["k"], ["t"], [1], [0.0], [1.0]))
    assert index.find(digest[:8] + bytes(24)) is None
    with pytest.raises(BadRecord):
        index.add(key_index.Columns(digest[:8] + bytes(24), ["l"], ["t"], [1], [0.0], [1.0]))


def store_for(path: Path) -> KeyStore:
    return KeyStore(Auth(keys_file=str(path)), Metrics.create(CollectorRegistry()))


def put(path: Path, text: str) -> None:
    """As a writer who does it right."""
    other = path.with_suffix(".new")
    other.write_text(text)
    other.replace(path)


def test_the_last_good_keys_stay(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A file that is broken, cut, emptied or gone changes nothing but `knows_all`, loudly; a good one ends that."""
    path = tmp_path / "keys.jsonl"
    key = keys_file(path).create(wanted("acme", [Scope.INFERENCE]))[0].encode()
    good = path.read_text()

    async def main() -> None:
        store = store_for(path)
        await store.begin()
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(store.watch())
            for bad in ("{", good[: len(good) // 2], "", None):
                path.unlink() if bad is None else put(path, bad)
                await asyncio.sleep(3)
                assert store.find(key) is not None
                assert not store.knows_all
                assert store._metrics.keys_stale.labels().value == 1
                put(path, good)
                await asyncio.sleep(3)
                assert store.knows_all
                assert store._metrics.keys_stale.labels().value == 0
            watching.cancel()

    with caplog.at_level(logging.ERROR, logger="penstock.keys"):
        run_virtual(main())
    assert len(caplog.records) == 4
    assert "the last good ones stay in force" in caplog.text


def test_what_cannot_be_read_is_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """A disk that fails for half a minute and leaves no trace in the file's times is asked again, and logged once."""
    path = tmp_path / "keys.jsonl"
    key = keys_file(path).create(wanted("acme", [Scope.INFERENCE]))[0].encode()
    honest = Path.open

    def failing(self: Path, *_: object) -> object:
        raise OSError(5, "Input/output error")

    async def main() -> None:
        store = store_for(path)
        monkeypatch.setattr(Path, "open", failing)
        await store.begin()
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(store.watch())
            await asyncio.sleep(30)
            assert not store.ready
            monkeypatch.setattr(Path, "open", honest)
            await asyncio.sleep(12)
            assert store.knows_all
            assert store.find(key) is not None
            watching.cancel()

    with caplog.at_level(logging.ERROR, logger="penstock.keys"):
        run_virtual(main())
    assert [record.getMessage().count("Input/output error") for record in caplog.records] == [1]


def test_a_file_that_is_being_written_is_left_alone(tmp_path: Path):
    """What changes between two looks is not read yet: a copy that has come to a line's end looks whole and lacks the rest."""
    path = tmp_path / "keys.jsonl"
    file = keys_file(path)
    keys = [file.create(wanted("acme", [Scope.INFERENCE]))[0].encode() for _ in range(4)]
    lines = path.read_text().splitlines(keepends=True)

    async def main() -> None:
        store = store_for(path)
        await store.begin()
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(store.watch())
            for count in range(1, 5):
                path.write_text("".join(lines[:count]))  # in place, a line a second
                os.utime(path, ns=(count, count))
                await asyncio.sleep(1)
                assert all(store.find(key) for key in keys)
            watching.cancel()

    run_virtual(main())


def test_revocation_is_noticed(tmp_path: Path):
    """A revoked key is known as that two seconds later, and at once where somebody says that the file has changed."""
    path = tmp_path / "keys.jsonl"
    file = keys_file(path)
    pairs = [file.create(wanted("acme", [Scope.INFERENCE])) for _ in range(2)]

    async def main() -> None:
        store = store_for(path)
        await store.begin()
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(store.watch())
            await asyncio.sleep(0.5)
            for (key, record), told, within_s in zip(pairs, (False, True), (2.6, 0.01), strict=True):
                file.revoke(record.id)
                if told:
                    store.read_again()
                await asyncio.sleep(within_s)
                found = store.find(key.encode())
                assert found is not None
                assert found.mask & key_index.REVOKED
            watching.cancel()

    run_virtual(main())


def test_a_million_keys_are_read_in_small_steps(tmp_path: Path):
    """A large file gives control back every few hundred records, so that streams go on while it is read."""
    path = tmp_path / "keys.jsonl"
    with path.open("w") as file:
        for number in range(5000):
            digest = digest_of(b"%d" % number, None).hex()
            file.write(json.dumps({"id": f"k{number}", "tenant": f"t{number % 7}", "sha256": digest}) + "\n")
    reading, sizes = Reading(Auth(keys_file=str(path))), [0]
    sizes.extend(len(reading.index) for _ in reading.steps())
    assert sizes[-1] == len(reading.index) == 5000
    assert max(after - before for before, after in pairwise(sizes)) <= 700
