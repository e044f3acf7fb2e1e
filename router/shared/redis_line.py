"""One line to Redis: a script and its arguments go out, its answer comes back; by name, by Sentinel, or to a Cluster.

Decides nothing. Every failure, whatever its kind, is an `Unreachable` that says in one word what it was; the connection is then thrown
away, since what comes over it next might be the answer to something older. Whoever must not wait for others' calls has a line of its own.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import redis.asyncio
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from config.shared import SharedRedis


class Unreachable(Exception):
    """Redis has not done what was asked, or has not said so in time; `kind` is one of timeout, connection, refused, replicas."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class RedisLine:
    """Connects when first asked, and again after each failure."""

    def __init__(self, config: SharedRedis) -> None:
        self._config = config
        self._client: Any = None

    def key(self, name: str) -> str:
        """Of this fleet; all keys are in one slot of a cluster, so that a script may have several."""
        return f"{{{self._config.prefix}}}:{name}"

    async def asked(self, script: str, keys: Sequence[str], arguments: Sequence[object], *, waits: bool = False) -> Any:
        """What the script returns. `waits`: until so many replicas of Redis have it as configured. Raises Unreachable."""
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

    async def listen(self, called: Mapping[str, Callable[[bytes], None]]) -> None:
        """Until it fails or is cancelled: by channel, called with each message. A cluster has no messages. Raises Unreachable."""
        if self._config.cluster:  # its client has no subscriptions: who idles hears of it with the next report
            await asyncio.get_running_loop().create_future()
        client = await _client(self._config, waits=True)
        try:
            async with client.pubsub() as messages:
                await messages.subscribe(*called)
                async for message in messages.listen():
                    if message["type"] == "message":
                        called[message["channel"].decode()](message["data"])
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

    async def _wait_for_replicas(self) -> None:
        wanted = self._config.wait_replicas
        reached = await self._client.wait(wanted, int(self._config.timeout_s * 1000))
        if reached < wanted:
            raise Unreachable("replicas", f"{reached} replicas of Redis have it, of {wanted} wanted")


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


async def _evaluated(client: Any, script: str, keys: Sequence[str], arguments: Sequence[object]) -> Any:
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
