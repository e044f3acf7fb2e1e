"""One line to Redis: a script and its arguments go out, its answer comes back; by name, by Sentinel, or to a Cluster.

Decides nothing. Every failure, whatever its kind, is an `Unreachable` that says in one word what it was; the connection is then thrown
away, since what comes over it next might be the answer to something older. Whoever must not wait for others' calls has a line of its own.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import redis.asyncio
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisClusterException, RedisError

from config.shared import RedisServer

_Node = tuple[str, int]
_MEETING_S = 5.0
_FAILURES = (TimeoutError, OSError, RedisError, RedisClusterException)  # the last is none of the third


class Unreachable(Exception):
    """Redis has not done what was asked, or has not said so in time; `kind` is one of timeout, connection, refused, replicas."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class RedisLine:
    """Connects when first asked, and again after each failure."""

    def __init__(self, config: RedisServer) -> None:
        self._config = config
        self._client: Any = None
        self._nodes: list[_Node] = []  # of a cluster, as it was last seen: the one that is configured may be gone
        self._listened = 0

    def key(self, name: str) -> str:
        """Of this fleet; all keys are in one slot of a cluster, so that a script may have several."""
        return f"{{{self._config.prefix}}}:{name}"

    async def asked(self, script: str, keys: Sequence[str], arguments: Sequence[object], *, waits: bool = False) -> Any:
        """What the script returns. `waits`: until so many replicas of Redis have it as configured. Raises Unreachable."""
        try:
            if self._client is None:
                self._client = _client(self._config, self._nodes)
                if self._config.cluster:
                    await self._meet(self._client)
            async with asyncio.timeout(self._config.timeout_s):
                found = await _evaluated(self._client, script, keys, arguments)
                if waits and self._config.wait_replicas:
                    await self._wait_for_replicas()
                if self._config.cluster:
                    self._nodes = [(node.host, int(node.port)) for node in self._client.get_nodes()]
                return found
        except (*_FAILURES, Unreachable) as error:
            await self.aclose()
            raise _unreachable(error, self._config.timeout_s) from error

    async def listen(self, called: Mapping[str, Callable[[bytes], None]]) -> None:
        """Until it fails or is cancelled: by channel, called with each message. Raises Unreachable."""
        config = self._config
        if config.cluster:  # its nodes tell each other: any will do, another one each time
            nodes = [None, *_configured(config), *self._nodes]
            self._listened += 1
            client = _single(config, nodes[self._listened % len(nodes)])
        else:
            client = _client(config, waits=True)
        try:
            async with client.pubsub() as messages:
                await messages.subscribe(*called)
                async for message in messages.listen():
                    if message["type"] == "message":
                        called[message["channel"].decode()](message["data"])
        except _FAILURES as error:
            raise _unreachable(error, self._config.timeout_s) from error
        finally:
            with suppress(*_FAILURES):
                await client.aclose()

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            try:
                async with asyncio.timeout(self._config.timeout_s):
                    await client.aclose()
                    if self._config.cluster:  # what has failed it takes for closed
                        await client.nodes_manager.aclose()
                        await client.nodes_manager.aclose("startup_nodes")
            except _FAILURES:
                pass  # it was of no use any more

    async def _meet(self, client: Any) -> None:
        """The cluster: which nodes it has, and what they understand. That is much to read, and no call's time."""
        async with asyncio.timeout(_MEETING_S):
            await client.initialize()

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
    broken = isinstance(error, OSError | redis.exceptions.ConnectionError | RedisClusterException)
    return Unreachable("connection" if broken else "refused", str(error) or type(error).__name__)


def _client(config: RedisServer, known: Sequence[_Node] = (), *, waits: bool = False) -> Any:
    """Connected at the first command. `known`: nodes of the cluster. `waits`: for what others say."""
    never, common = _never(), _common(config, waits=waits)
    if config.cluster:
        nodes: list[Any] = [ClusterNode(host, port) for host, port in {*_configured(config), *known}]
        return RedisCluster.from_url(
            str(config.url), startup_nodes=nodes, require_full_coverage=False, retry=never, **common
        )
    if config.sentinel is not None:
        nodes = [(host, int(port)) for host, _, port in (node.rpartition(":") for node in config.sentinel.nodes)]
        asked = {"password": config.sentinel.password, "socket_timeout": config.timeout_s / 2, "protocol": 2}
        sentinels = Sentinel(nodes, sentinel_kwargs=asked, **common)  # type: ignore[no-untyped-call]
        return sentinels.master_for(config.sentinel.master, max_connections=1, retry=never)
    assert config.url is not None
    # One connection: WAIT asks for what was written on its own.
    return redis.asyncio.Redis.from_url(config.url, single_connection_client=not waits, retry=never, **common)


def _single(config: RedisServer, node: _Node | None) -> Any:
    """To one node of the cluster, for what others say; None: the one that is configured."""
    parts = urlsplit(str(config.url))
    if node is not None:
        host, port = node
        parts = parts._replace(netloc=f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    return redis.asyncio.Redis.from_url(urlunsplit(parts), retry=_never(), **_common(config, waits=True))


def _common(config: RedisServer, *, waits: bool) -> dict[str, Any]:
    return {
        "username": config.username,
        "password": config.password,
        "socket_timeout": None if waits else config.timeout_s,
        "socket_connect_timeout": config.timeout_s,
        "protocol": 2,
    }


def _never() -> Retry:
    """Whoever asks knows better when to ask again."""
    return Retry(NoBackoff(), 0)


def _configured(config: RedisServer) -> list[_Node]:
    """Of a cluster, beside `url`."""
    return [(host, int(port)) for host, _, port in (node.rpartition(":") for node in config.cluster_nodes)]


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
