"""API keys in a real Redis: the scripts do what the twin in the tests does; commands write there, gateways follow, and Redis may fail as it likes."""

import asyncio
import json
import random
import re
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import redis

from config.shared import RedisServer as RedisSection
from router.tenants.keys import digest_of
from router.tenants.keys_in_redis import Change, KeysInRedis
from tests.real.conftest import RedisServer
from tests.support.asgi import chat
from tests.support.fake_keys import FakeKeys
from tests.support.gateway_process import GatewayProcess, serving
from tests.support.patience import PATIENCE_S
from tests.support.raw_http import ask, get, post
from tests.support.redis_server import RedisProcess

pytestmark = pytest.mark.real

NUMBERS = count()
CHAT = "/v1/chat/completions"
BODY = chat("Hi", model="m", max_tokens=2)


def book_at(server: RedisServer) -> KeysInRedis:
    """One that nobody has written in."""
    return KeysInRedis(RedisSection(url=server.url, prefix=f"keys:{next(NUMBERS)}"))


@pytest.mark.parametrize("seed", range(6))
async def test_the_scripts_are_the_twin(redis_server: RedisServer, seed: int):
    """Changes, right and wrong ones, and questions from every stamp there ever was, after losses, too: the same answers, but for the tags."""
    random_, twin, real = random.Random(seed), FakeKeys(), book_at(redis_server)
    stamps, ids = [("", ""), ("-", "-")], [f"k{n}" for n in range(20)]
    with redis.Redis(port=redis_server.port) as client:
        for step in range(300):
            some = random_.sample(ids, random_.choice((1, 1, 1, 2, 5)))
            before = await real.get(some)
            assert before == await twin.get(some)
            if random_.random() < 0.1:
                before[0] += b"?"
            changes = [
                Change(id_, old, b"%d-%d" % (step, n)) for n, (id_, old) in enumerate(zip(some, before, strict=True))
            ]
            assert await real.put(changes) == await twin.put(changes)
            stamps.append(((await real.changes("")).stamp, twin.head))
            theirs, ours = random_.choice(stamps[-100:])
            heard, expected = await real.changes(theirs), await twin.changes(ours)
            assert heard[1:] == expected[1:]
            assert (theirs == heard.stamp) == (ours == expected.stamp)
            if random_.random() < 0.02:
                twin.lose_everything()
                client.delete(*real._keys)
    found, cursor = set[bytes](), ""
    while cursor != "0":
        cursor, page = await real.page(cursor or "0")
        found |= set(page.split(b"\n"))
    assert found - {b""} == set(twin.records.values())
    await real.aclose()


async def test_many_changes_come_in_parts(redis_server: RedisServer):
    """More than an answer should hold: some at a time, each with the stamp that goes on from there."""
    book, stamp, found = book_at(redis_server), "", list[bytes]()
    await book.put([Change("first", b"", b"0")])
    stamp = (await book.changes("")).stamp
    for first in range(0, 1200, 200):
        await book.put([Change(f"k{n}", b"", b"%d" % n) for n in range(first, first + 200)])
    parts = 0
    while True:
        heard = await book.changes(stamp)
        assert heard.records is not None
        found += heard.records
        stamp, parts = heard.stamp, parts + 1
        if heard.whole:
            break
    assert found == [b"%d" % n for n in range(1200)]
    assert parts == 2  # of 600 records each: 500 are enough
    await book.aclose()


async def test_a_log_that_is_gone_is_not_believed(redis_server: RedisServer):
    """Evicted, or cut shorter than what was missed: then all is read again, and nothing is taken for nothing new."""
    book = book_at(redis_server)
    await book.put([Change("a", b"", b"1")])
    stamp = (await book.changes("")).stamp
    await book.put([Change("a", b"1", b"2")])
    with redis.Redis(port=redis_server.port) as client:
        client.delete(book._keys[1])
        assert (await book.changes(stamp)).records is None
        await book.put([Change("a", b"2", b"3")])
        assert (await book.changes(stamp)).records is None
        client.delete(book._keys[0])  # the log alone is left
    assert await book.put([Change("b", b"", b"1")])
    assert (await book.changes(stamp)).records is None
    await book.aclose()


# -- commands and gateways -------------------------------------------------------------------------------------------


def keys(*arguments: str) -> str:
    """Standard output of `penstock keys ...`, which must succeed."""
    command = [sys.executable, "-c", "from router.cli import main; main()", "keys", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def write(folder: Path, url: str, **auth: object) -> Path:
    config = folder / "penstock.yaml"
    replica = {"name": "sim", "backend": "simulated", "models": ["m"], "simulated": {"speed": 50}}
    config.write_text(json.dumps({"auth": {"keys_redis": {"url": url}, **auth}, "replicas": [replica]}))
    return config


async def status(gateway: GatewayProcess, key: str) -> int:
    return (await ask(gateway.url, post(CHAT, BODY, f"authorization: Bearer {key}"))).status


async def until_status(gateway: GatewayProcess, key: str, wanted: int) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while await status(gateway, key) != wanted:
            await asyncio.sleep(0.05)


async def until_state(gateway: GatewayProcess, wanted: str) -> int:
    """Of `/readyz`; its status."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            answer = await ask(gateway.url, get("/readyz"))
            if answer.json()["keys"]["state"] == wanted:
                return answer.status
            await asyncio.sleep(0.05)


async def test_from_nothing_to_two_gateways(redis_process: RedisProcess, tmp_path: Path):
    """Keys that are made, rotated and revoked count at two gateways, one of two workers, without a word to either; no key is in a log or in Redis."""
    config = write(tmp_path, redis_process.url)
    first = keys("create", "--redis", redis_process.url, "--tenant", "acme")
    assert re.fullmatch(r"psk-[A-Za-z0-9_-]{43}", first)
    async with serving(config) as one, serving(config, "--workers", "2") as two:
        assert [await status(gateway, first) for gateway in (one, two, two, two)] == [200] * 4
        assert await status(one, "psk-wrong") == 401
        second = keys("create", "--config", str(config), "--tenant", "umbrella", "--label", "two")
        for gateway in (one, two):
            await until_status(gateway, second, 200)
        listed = keys("list", "--redis", redis_process.url)
        ids = {line.split()[1]: line.split()[0] for line in listed.splitlines()[1:]}
        third = keys("rotate", ids["umbrella"], "--redis", redis_process.url, "--overlap", "1h")
        keys("revoke", ids["acme"], "--redis", redis_process.url)
        for gateway in (one, two, two, two):
            await until_status(gateway, third, 200)
            await until_status(gateway, first, 401)
            assert await status(gateway, second) == 200
        with redis.Redis(port=redis_process.port) as client:
            kept = b"".join(client.hgetall("{penstock:default}:keys").values())
    for told in (first, second, third):
        assert told.encode() not in kept
        assert not any(told in text for text in (listed, one.log, two.log))


async def test_a_file_s_keys_come_to_redis(redis_process: RedisProcess, tmp_path: Path):
    """As they are, once; the gateway then needs no file."""
    file = tmp_path / "keys.jsonl"
    key = keys("create", "--file", str(file), "--tenant", "acme")
    assert keys("import", "--file", str(file), "--redis", redis_process.url).startswith("1 keys have come")
    assert keys("import", "--file", str(file), "--redis", redis_process.url).startswith("0 keys have come")
    async with serving(write(tmp_path, redis_process.url)) as gateway:
        assert await status(gateway, key) == 200


async def test_commands_at_once_lose_nothing(redis_process: RedisProcess):
    """Two write at the same time: each change replaces what it has read, and no other."""
    code = (
        f"from router.keys_command import create; [create(tenant='t', redis={redis_process.url!r}) for _ in range(5)]"
    )
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL) for _ in range(3)]
    assert [await asyncio.to_thread(process.wait) for process in running] == [0] * 3
    assert len(keys("list", "--redis", redis_process.url).splitlines()) == 16


async def test_redis_dies_freezes_and_forgets(redis_process: RedisProcess, tmp_path: Path):
    """Whatever it does, a key that was good is answered 200 all the time, and never 401; who starts without it is not ready, and says 503."""
    config = write(tmp_path, redis_process.url)
    key = keys("create", "--redis", redis_process.url, "--tenant", "acme")
    async with serving(config) as gateway:
        assert await status(gateway, key) == 200
        redis_process.freeze()
        assert await until_state(gateway, "unreachable") == 200
        assert (await status(gateway, key), await status(gateway, "psk-wrong")) == (200, 503)
        async with serving(config) as late:
            assert await until_state(late, "unread") == 503
            assert await status(late, key) == 503
            redis_process.thaw()
            assert await until_state(late, "ok") == 200
            assert await status(late, key) == 200
        await until_status(gateway, "psk-wrong", 401)
        redis_process.kill()
        await until_state(gateway, "unreachable")
        redis_process.start()  # empty
        assert await until_state(gateway, "lost_keys") == 200
        assert (await status(gateway, key), await status(gateway, "psk-wrong")) == (200, 503)
        other = keys("create", "--redis", redis_process.url, "--tenant", "umbrella")
        await until_status(gateway, other, 200)
        assert await status(gateway, key) == 200
    assert "1 keys are not there any more" in gateway.log


def test_a_key_that_no_replica_has_is_told(redis_process: RedisProcess, tmp_path: Path):
    """The change is made and not confirmed: the key comes, with a warning and an exit code that is not zero; it would be lost else."""
    redis_at = {"url": redis_process.url, "wait_replicas": 1}
    config = write(tmp_path, redis_process.url, keys_redis=redis_at)

    def unsure(*arguments: str) -> tuple[str, str]:
        """(the key, its id as it was told)."""
        command = [
            sys.executable,
            "-c",
            "from router.cli import main; main()",
            "keys",
            *arguments,
            "--config",
            str(config),
        ]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert found.returncode == 1
        assert "it is written, though" in found.stderr
        told = re.search(r"key (\w+) of tenant acme", found.stderr)
        assert told is not None
        return found.stdout.strip(), told[1]

    first, id_ = unsure("create", "--tenant", "acme")
    second, other = unsure("rotate", id_)
    with redis.Redis(port=redis_process.port) as client:
        for key, its in ((first, id_), (second, other)):
            kept = client.hget("{penstock:default}:keys", its)
            assert kept is not None
            assert json.loads(kept)["sha256"] == digest_of(key.encode(), None).hex()


def test_commands_say_what_is_wrong(redis_process: RedisProcess, tmp_path: Path):
    """In one line, with what to do: nobody there, an unknown id, two places at once, no place."""
    cases = (
        (("create", "--redis", "redis://127.0.0.1:1/0", "--tenant", "a"), 1, "penstock keys: Redis: "),
        (("revoke", "nosuchkey", "--redis", redis_process.url), 1, "no key is called 'nosuchkey' in Redis"),
        (("list", "--redis", "http://h"), 2, "is no Redis address"),
        (("list", "--redis", redis_process.url, "--file", "x"), 2, "one of the two"),
        (("list", "--config", str(write(tmp_path, redis_process.url, keys_file="x"))), 2, "both auth.keys_file and"),
        (("list",), 2, "nobody says where"),
    )
    for arguments, code, says in cases:
        command = [sys.executable, "-c", "from router.cli import main; main()", "keys", *arguments]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (found.returncode, says in " ".join(found.stderr.replace("│", " ").split())) == (code, True), found
        assert "Traceback" not in found.stderr
