"""Runs a gateway under uvicorn: the socket, the signals, the banner.

SIGTERM or Ctrl-C: not ready, queued requests sent away, running streams finish within `drain_timeout_s`; a second signal ends at
once. SIGHUP: the configuration is read again; a bad one changes nothing and says so.
"""

import asyncio
import errno
import gc
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from types import FrameType

import uvicorn

from config.load import ConfigError
from config.schema import Config, Server
from router.admin_access import is_loopback
from router.app import create_app, hot_plane
from router.gateway import Gateway
from router.logs import announce, configure_logging
from router.protocol import KEEP_ALIVE_IDLE_S, protocol_with
from router.tenants.key_reading import BadStore

log = logging.getLogger("penstock")

# Room for a burst of clients that all connect at once: SDKs give up on a connection after 5 s.
_BACKLOG = 4096
_ACCEPTED_A_TURN = 32  # connections: 350 a second where 2,000 streams make a turn of the loop 90 ms; more costs idle gateways a look each
_YOUNG_OBJECTS = 50_000  # that no collection has seen yet: at so many it looks, some MB (Python's default is 700)
_EXIT_CONFIG = 78  # as the command line's
ABORT_GRACE_S = 5  # after the drain deadline, for the error events to go out
_RELOAD_AFTER_START_S = 0.5
_DRAIN_LOOK_S = 0.05
_FORCED_GRACE_S = 1.0  # the same after a second signal, which asks not to wait


def run(config: Config, *, reload: Callable[[], Config] | None = None) -> int:
    """Serve until a signal; returns the exit code (1: the address could not be bound)."""
    configure_logging(config.log_level, config.log_format)
    server = config.server
    try:
        doors = open_doors(server, server.port, server.admin_port)
    except CannotListenError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the one line a user must see
        return 1
    version = installed_version("penstock")
    gateway = Gateway(config, version=version)
    if gateway.keys is not None:
        try:
            gateway.keys.load()
        except BadStore as error:
            for opened in doors.sockets:
                opened.close()
            return refuse_keys(error)
    PenstockServer(gateway, doors, version, reload).run(sockets=doors.sockets)
    return 0


def refuse_keys(error: BadStore) -> int:
    """Nobody could be told apart: that is an error of the configuration."""
    print(f"penstock: {error}", file=sys.stderr)  # noqa: T201 - the one line a user must see
    return _EXIT_CONFIG


class CannotListenError(Exception):
    """An address that can't be had; its text says what to do about it."""


@dataclass(frozen=True, slots=True)
class Doors:
    """The sockets of one gateway."""

    main: socket.socket
    admin: socket.socket | None  # /admin and the board are there, if there is one

    @property
    def sockets(self) -> list[socket.socket]:
        return [self.main] if self.admin is None else [self.main, self.admin]

    @property
    def admin_port(self) -> int | None:
        return None if self.admin is None else self.admin.getsockname()[1]


def open_doors(server: Server, port: int, admin_port: int | None, *, shared: bool = False) -> Doors:
    """Listens at both addresses, or at neither; raises CannotListenError."""
    main = _open(server.host, port, "server.port", shared=shared)
    if admin_port is None:
        return Doors(main, None)
    try:
        return Doors(main, _open(server.admin_host, admin_port, "server.admin_port", shared=shared))
    except CannotListenError:
        main.close()
        raise


def _open(host: str, port: int, setting: str, *, shared: bool) -> socket.socket:
    try:
        return bind(host, port, shared=shared)
    except OSError as error:
        raise CannotListenError(bind_message(host, port, setting, error)) from None


def bind(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """A listening socket; raises OSError as the system gives it. `shared`: others of this user may have the port, too, and it does not listen yet."""
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        if not shared:
            listener.listen(_BACKLOG)  # now, so that a second gateway on this port fails here and not half started
    except OSError:
        listener.close()
        raise
    return listener


def again(door: socket.socket) -> list[socket.socket]:
    """The same door by so many more descriptors that a turn of the loop lets in `_ACCEPTED_A_TURN`. Whoever serves at them closes them.

    libuv accepts one connection a turn and descriptor (since 1.45): under load turns are long, and those outside would wait unread, in no metric.
    """
    return [door.dup() for _ in range(_ACCEPTED_A_TURN - 1)]


def bind_message(host: str, port: int, setting: str, error: OSError) -> str:
    """What to do about an address that can't be had."""
    where = f"{host}:{port}"
    instead = "with --port, or PORT= with make serve" if setting == "server.port" else f"as {setting}"
    if error.errno == errno.EADDRINUSE:
        return f"penstock: {where} is in use by another process; choose another port {instead}"
    if error.errno in (errno.EACCES, errno.EPERM):
        instead = "with --port" if setting == "server.port" else instead
        return f"penstock: not allowed to listen on {where}; ports below 1024 need privileges, choose another {instead}"
    check = f"{setting.removesuffix('port')}host and {setting}"
    return f"penstock: cannot listen on {where}: {error.strerror or error}; check {check}"


class PenstockServer(uvicorn.Server):
    """uvicorn's server with our signals."""

    def __init__(self, gateway: Gateway, doors: Doors, version: str, reload: Callable[[], Config] | None) -> None:
        server = gateway.config.server
        if doors.admin is not None:
            gateway.admin_at = doors.admin.getsockname()[:2]
        super().__init__(
            uvicorn.Config(
                create_app(gateway, version),
                http=protocol_with(
                    server.header_timeout_s,
                    server.write_stall_timeout_s,
                    hot_plane(gateway.config, gateway.dispatcher, gateway.bodies, gateway.gate),
                ),
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=_BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_IDLE_S,
                timeout_graceful_shutdown=int(server.drain_timeout_s) + ABORT_GRACE_S,
            )
        )
        self._gateway = gateway
        gateway.identity = f"{socket.gethostname()}:{doors.main.getsockname()[1]}"
        self._doors = doors
        self._version = version
        self._reload = reload

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._reload is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload_config)
        await super().startup([*(sockets or ()), *again(self._doors.main)])
        # What has been imported and built stays to the end: a full collection need not walk through it while streams wait.
        gc.collect()
        gc.freeze()
        # Whole answers leave no cycles behind, connections some twenty objects: walking through all that is young at every 700th object finds nothing.
        gc.set_threshold(_YOUNG_OBJECTS)
        self.announce()

    def announce(self) -> None:
        """Connections are accepted from now on."""
        announce(self.banner(), self._gateway.config.log_format)

    def banner(self) -> str:
        return banner(self._gateway, self._doors.main.getsockname()[:2], self._version)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """The door stays open while streams finish: whoever asks is told 503 and when to come back, `/readyz` says why."""
        self._gateway.begin_drain()
        loop = asyncio.get_running_loop()
        deadline = loop.call_later(self._gateway.config.server.drain_timeout_s, self._gateway.end_drain)
        try:
            while self._gateway.dispatcher.active and not self.force_exit:  # noqa: ASYNC110 - signals only set flags
                await asyncio.sleep(_DRAIN_LOOK_S)
            self._gateway.board.feed.end()  # watched to the end of the drain, and no longer
            await super().shutdown(sockets)
        finally:
            deadline.cancel()
        if self.force_exit:  # uvicorn would leave all that runs to the loop's end, a traceback each
            self._gateway.end_drain()
            with suppress(TimeoutError):
                async with asyncio.timeout(_FORCED_GRACE_S):
                    await asyncio.gather(*self.server_state.tasks)
                    await self.lifespan.shutdown()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal drains, the second does not wait. Not captured: a drained exit is a clean one."""
        del sig, frame
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    def _reload_config(self) -> None:
        assert self._reload is not None
        if not self.started:  # unhandled, the signal would end the process
            asyncio.get_running_loop().call_later(_RELOAD_AFTER_START_S, self._reload_config)
            return
        metrics = self._gateway.metrics
        try:
            config = self._reload()
        except ConfigError as error:
            metrics.config_reloads_total.labels("rejected").inc()
            log.warning("reload refused, nothing changed: %s", "; ".join(error.problems))
            return
        self._gateway.reload(config)
        metrics.config_reloads_total.labels("applied").inc()
        metrics.config_last_reload_success_timestamp_seconds.set(time.time())  # noqa: TID251 - people read it as wall time
        log.info("configuration reloaded: %d replicas", len(config.replicas))


def banner(gateway: Gateway, address: tuple[str, int], version: str) -> str:
    """The URL, a curl and the SDK lines, ready to copy."""
    url = _url(address)
    model = next(iter(sorted(gateway.scheduler.models())), "MODEL")
    replicas = "\n".join(
        f"  {r.name:<16} {r.backend:<10} {r.gpu.type:<10} {r.cost.tier:<10} ${r.cost.usd_per_hour:g}/h"
        for r in gateway.config.replicas
    )
    asks = gateway.gate is not None
    key, bearer = ("psk-...", " -H 'authorization: Bearer psk-...'") if asks else ("none", "")
    return f"""
Penstock {version} listens on {url}
{replicas}

Try it:
  curl -N {url}/v1/chat/completions -H 'content-type: application/json'{bearer} \\
    -d '{{"model": "{model}", "stream": true, "messages": [{{"role": "user", "content": "Hello"}}]}}'

  from openai import OpenAI
  client = OpenAI(base_url="{url}/v1", api_key="{key}")
  print(client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "Hello"}}]).choices[0].message.content)

{_board(gateway, url)}Metrics: {url}/metrics   API: {url}/docs   Stop with Ctrl-C.
"""


def _url(address: tuple[str, int]) -> str:
    host, port = address
    shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104 - read, not bound
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _board(gateway: Gateway, url: str) -> str:
    """Where the fleet can be seen, if anywhere."""
    server = gateway.config.server
    if gateway.admin_at is not None:
        url = _url(gateway.admin_at)
    host = server.host if gateway.admin_at is None else server.admin_host
    return f"Board: {url}/   " if server.admin_key is not None or is_loopback(host) else ""
