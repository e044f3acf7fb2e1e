"""A Redis Cluster of a test's own: three masters, with a replica each if wanted; slots can be moved, nodes killed and started again."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import redis

from tests.support.patience import PATIENCE_S
from tests.support.ports import free_port
from tests.support.redis_server import RedisProcess

SLOTS = 16384


class RedisCluster:
    """`start` returns once every node says that the cluster is whole."""

    def __init__(self, folder: Path, *, replicas: bool = False, node_timeout_ms: int = 1000) -> None:
        options = (
            "--cluster-enabled", "yes", "--cluster-node-timeout", str(node_timeout_ms),
            "--repl-diskless-sync-delay", "0", "--cluster-replica-validity-factor", "0",
        )  # fmt: skip
        self.nodes: list[RedisProcess] = []
        self._buses: list[int] = []
        for number in range(6 if replicas else 3):
            (folder / f"node-{number}").mkdir()
            bus = free_port()  # else the port and 10,000, which may be none
            self._buses.append(bus)
            self.nodes.append(RedisProcess(folder / f"node-{number}", *options, "--cluster-port", str(bus)))

    @property
    def masters(self) -> list[RedisProcess]:
        """As it was begun."""
        return self.nodes[:3]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.nodes[0].port}"

    def start(self) -> None:
        for node in self.nodes:
            node.start()
        for number, node in enumerate(self.masters):
            first, last = SLOTS * number // 3, SLOTS * (number + 1) // 3 - 1
            self.ask(node, "CLUSTER", "ADDSLOTSRANGE", first, last)
            self.ask(node, "CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for node in self.nodes[1:]:
            self.ask(node, "CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port, self._buses[0])
        for master, replica in zip(self.masters, self.nodes[3:], strict=False):
            self._until(lambda replica=replica, master=master: self._follows(replica, master))
        self._until(lambda: all(self._is_whole(node) for node in self.nodes))

    def stop(self) -> None:
        for node in self.nodes:
            with contextlib.suppress(AssertionError):
                node.thaw()
            node.kill()

    def owner(self, key: str) -> RedisProcess:
        """Who has the key's slot, as all who live and are asked agree."""
        slot = self.slot_of(key)
        for node in self.nodes:
            with contextlib.suppress(redis.RedisError):
                for first, last, master, *_ in self.ask(node, "CLUSTER", "SLOTS"):
                    if int(first) <= slot <= int(last):
                        return next(one for one in self.nodes if one.port == int(master[1]))
        raise AssertionError("nobody has the slot")

    def slot_of(self, key: str) -> int:
        return int(self.ask(self.nodes[-1], "CLUSTER", "KEYSLOT", key))

    def begin_move(self, slot: int, source: RedisProcess, target: RedisProcess) -> None:
        """The slot is on its way, and no key yet."""
        self.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        self.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(target))

    def keys_in(self, slot: int, node: RedisProcess) -> list[bytes]:
        return list(self.ask(node, "CLUSTER", "GETKEYSINSLOT", slot, 100))

    def move_key(self, key: bytes, source: RedisProcess, target: RedisProcess) -> None:
        self.ask(source, "MIGRATE", "127.0.0.1", target.port, key, 0, 5000)

    def end_move(self, slot: int, source: RedisProcess, target: RedisProcess) -> None:
        for node in (target, source, *(one for one in self.nodes if one not in {source, target})):
            with contextlib.suppress(redis.RedisError):  # a replica takes no slot
                self.ask(node, "CLUSTER", "SETSLOT", slot, "NODE", self.id_of(target))

    def id_of(self, node: RedisProcess) -> str:
        found = self.ask(node, "CLUSTER", "MYID")
        return found.decode() if isinstance(found, bytes) else str(found)

    def ask(self, node: RedisProcess, *command: object) -> object:
        with redis.Redis(port=node.port) as client:
            client.response_callbacks.clear()  # answers as they come
            return client.execute_command(*command)

    def _follows(self, replica: RedisProcess, master: RedisProcess) -> bool:
        with contextlib.suppress(redis.RedisError):  # it has not met that one yet
            self.ask(replica, "CLUSTER", "REPLICATE", self.id_of(master))
            return True
        return False

    def _is_whole(self, node: RedisProcess) -> bool:
        told = self.ask(node, "CLUSTER", "INFO")
        links = self.ask(node, "INFO", "replication")
        assert isinstance(told, bytes)
        assert isinstance(links, bytes)
        following = b"role:master" in links or b"master_link_status:up" in links
        known = b"cluster_known_nodes:%d\r" % len(self.nodes)
        return b"cluster_state:ok" in told and known in told and following

    @staticmethod
    def _until(true: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < deadline_s, "the cluster does not come together"
            time.sleep(0.05)
