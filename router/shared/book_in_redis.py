"""The shared book where it lives: one call to Redis a report. Turns values into a script's arguments and its answer into values.

Decides nothing about time or shares. Every failure, whatever its kind, is an `Unreachable` that says in one word what it was; the connection
is then thrown away, since what comes over it next might be the answer to something older.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec
import redis.asyncio
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from batching.request import ReplicaId
from batching.shared_book import Entry, Record, Reply, Report, Status, Terms
from config.shared import SharedRedis
from router.shared.scripts import LEAVE, NOTE, REPORT

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder().decode


class Unreachable(Exception):
    """Redis has not done what was asked, or has not said so in time; `kind` is one of timeout, connection, refused, replicas."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """An answer: about shares, and - where they are not those of `stamp` - all notices."""

    reply: Reply
    stamp: bytes = b""
    notices: dict[bytes, bytes] | None = None


class Book(Protocol):
    """Where the shared book is; the tests have one without a Redis."""

    async def report(self, report: Report, stamp: bytes) -> Heard:
        """Raises Unreachable."""
        ...

    async def leave(self, name: str, instance: str) -> None:
        """Raises Unreachable."""
        ...

    async def note(self, replica: str, before: int, body: bytes, left_ms: int | None) -> int:
        """Write what stands against a replica, if what stood was number `before` (0: nothing); empty `body`: nothing any more.

        Returns the number that stands now, negative if it was another. Raises Unreachable.
        """
        ...

    async def listen(self, called: Callable[[str], None]) -> None:
        """Until it fails or is cancelled: `called` with the name of each holder that says it is short. Raises Unreachable."""
        ...

    async def aclose(self) -> None: ...


class BookInRedis:
    """`Book`. Connects when first asked, and again after each failure."""

    def __init__(self, config: SharedRedis) -> None:
        self._config = config
        tag = "{" + config.prefix + "}"  # one slot of a cluster
        self._keys = [f"{tag}:book", f"{tag}:words", f"{tag}:notices"]
        self._channel = f"{tag}:short"
        self._client: Any = None

    async def report(self, report: Report, stamp: bytes, *, now_ms: int | None = None, server: str = "") -> Heard:
        """`now_ms` and `server`: in tests, in place of Redis' own."""
        arguments = (
            report.name, report.instance, report.number, *report.terms, _encode(report.wishes), _encode(report.known),
            report.join.value, report.words, stamp, "" if now_ms is None else now_ms, server,
            self._channel if report.short else "",
        )  # fmt: skip
        return _heard(await self._asked(REPORT, self._keys, arguments, waits=True))

    async def leave(self, name: str, instance: str) -> None:
        await self._asked(LEAVE, self._keys[:2], (name, instance))

    async def note(self, replica: str, before: int, body: bytes, left_ms: int | None) -> int:
        arguments = (replica, before, body, "" if left_ms is None else left_ms)
        return int(await self._asked(NOTE, self._keys[2:], arguments, waits=True))

    async def listen(self, called: Callable[[str], None]) -> None:
        if self._config.cluster:  # its client has no subscriptions: who idles hears of it with the next report
            await asyncio.get_running_loop().create_future()
        client = await _client(self._config, waits=True)
        try:
            async with client.pubsub() as messages:
                await messages.subscribe(self._channel)
                async for message in messages.listen():
                    if message["type"] == "message":
                        called(message["data"].decode())
        except (OSError, RedisError) as error:
            raise _unreachable(error, self._config.timeout_s) from error
        finally:
            with suppress(OSError, RedisError):
                await client.aclose()

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            try:
                async with asyncio.timeout(self._config.timeout_s):
                    await client.aclose()
            except (TimeoutError, OSError, RedisError):
                pass  # it was of no use any more

    async def _asked(self, script: str, keys: list[str], arguments: tuple[object, ...], *, waits: bool = False) -> Any:
        try:
            async with asyncio.timeout(self._config.timeout_s):
                if self._client is None:
                    self._client = await _client(self._config)
                found = await _evaluated(self._client, script, keys, arguments)
                if waits and self._config.wait_replicas:
                    await self._wait_for_replicas()
                return found
        except (TimeoutError, OSError, RedisError, Unreachable) as error:
            await self.aclose()
            raise _unreachable(error, self._config.timeout_s) from error

    async def _wait_for_replicas(self) -> None:
        wanted = self._config.wait_replicas
        reached = await self._client.wait(wanted, int(self._config.timeout_s * 1000))
        if reached < wanted:
            raise Unreachable("replicas", f"{reached} replicas of Redis have the report, of {wanted} wanted")


def _unreachable(error: Exception, timeout_s: float) -> Unreachable:
    if isinstance(error, Unreachable):
        return error
    if isinstance(error, TimeoutError | redis.exceptions.TimeoutError):
        return Unreachable("timeout", f"no answer within {timeout_s:g} s")
    broken = isinstance(error, OSError | redis.exceptions.ConnectionError)
    return Unreachable("connection" if broken else "refused", str(error) or type(error).__name__)


async def _client(config: SharedRedis, *, waits: bool = False) -> Any:
    """Connected at the first command. One connection: WAIT asks for what was written on its own. `waits`: for what others say."""
    common: dict[str, Any] = {
        "username": config.username,
        "password": config.password,
        "socket_timeout": None if waits else config.timeout_s,
        "socket_connect_timeout": config.timeout_s,
        "protocol": 2,
    }
    never = Retry(NoBackoff(), 0)  # whoever asks knows better when to ask again
    if config.sentinel is not None:
        nodes = [(host, int(port)) for host, _, port in (node.rpartition(":") for node in config.sentinel.nodes)]
        asked = {"password": config.sentinel.password, "socket_timeout": config.timeout_s / 2, "protocol": 2}
        sentinels = Sentinel(nodes, sentinel_kwargs=asked, **common)  # type: ignore[no-untyped-call]
        return sentinels.master_for(config.sentinel.master, max_connections=1, retry=never)
    assert config.url is not None
    if config.cluster:
        client = RedisCluster.from_url(config.url, retry=never, **common)
        await client.initialize()
        return client
    return redis.asyncio.Redis.from_url(config.url, single_connection_client=not waits, retry=never, **common)


async def _evaluated(client: Any, script: str, keys: list[str], arguments: tuple[object, ...]) -> Any:
    """By its digest; the text goes only where a server does not know it yet."""
    digest = _digest(script)
    try:
        called: Awaitable[Any] = client.evalsha(digest, len(keys), *keys, *arguments)
        return await called
    except NoScriptError:
        called = client.eval(script, len(keys), *keys, *arguments)
        return await called


def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def _heard(found: list[Any]) -> Heard:
    status = Status(found[0].decode())
    if status is not Status.OK:
        return Heard(reply=Reply(status=status))
    _, now_ms, frozen, bounds, others, stamp, notices = found
    records = {others[i].decode(): _record(others[i + 1], others[i + 2]) for i in range(0, len(others), 3)}
    reply = Reply(
        status=status,
        now_ms=now_ms,
        frozen=bool(frozen),
        bounds={ReplicaId(bounds[i].decode()): bounds[i + 1] for i in range(0, len(bounds), 2)},
        others=records,
    )
    told = None if notices is None else {notices[i]: notices[i + 1] for i in range(0, len(notices), 2)}
    return Heard(reply=reply, stamp=stamp, notices=told)


def _record(packed: bytes, words: bytes) -> Record:
    instance, number, heard_ms, lease_ms, settle_ms, forget_ms, static, lapsed, suspect, entries = _decode(packed)
    return Record(
        instance=instance,
        number=number,
        heard_ms=heard_ms,
        terms=Terms(lease_ms, settle_ms, forget_ms, static),
        # Lua's empty table is a list.
        entries={ReplicaId(replica): Entry(*entry) for replica, entry in dict(entries).items()},
        lapsed=bool(lapsed),
        suspect=bool(suspect),
        words=words,
    )
