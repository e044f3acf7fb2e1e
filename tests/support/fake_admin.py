"""A gateway's admin API about replicas, without a gateway: records what it is told, and lets go of a replica when the test says so."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.support.loopback_http import Asked, LoopbackServer, Says
from tests.support.patience import PATIENCE_S

_PATH = re.compile(r"/admin/replicas(?:/([^/]+)(?:/(drain|restore|notice))?)?")


@dataclass
class FakeReplica:
    lifecycle: str = "ready"
    requests: int = 3
    deadline_unix_s: float | None = None
    reason: str | None = None
    released: bool = False
    ids: set[str] = field(default_factory=set)

    def document(self, name: str) -> dict[str, Any]:
        return {
            "name": name, "lifecycle": self.lifecycle, "detail": "", "requests": self.requests,
            "deadline_unix_s": self.deadline_unix_s, "reason": self.reason, "released": self.released,
            "models": ["m"], "gpu": "A100-80G", "cost_tier": "spot",
        }  # fmt: skip


class FakeAdmin(LoopbackServer):
    """Of one gateway. `posts`: (what, body) of each POST that was taken, in order."""

    def __init__(self, *names: str, key: str | None = None) -> None:
        super().__init__(self._answer)
        self.replicas = {name: FakeReplica() for name in names or ("a100-spot",)}
        self.posts: list[tuple[str, dict[str, Any]]] = []
        self.refused: list[str] = []  # what could not be done, 409
        self.looks = 0
        self.troubles: list[Says | None] = []  # for the next requests; None: a cut connection
        self.changed = asyncio.Condition()
        self._key = key

    @property
    def notices(self) -> list[dict[str, Any]]:
        return [body for what, body in self.posts if what == "notice"]

    @property
    def told(self) -> list[str]:
        """The words of all POSTs: kinds of notices, drain, restore."""
        return [body["kind"] if what == "notice" else what for what, body in self.posts]

    def release(self, name: str = "a100-spot") -> None:
        replica = self.replicas[name]
        replica.requests, replica.released = 0, True

    def forget(self) -> None:
        """As a gateway that was restarted."""
        self.replicas = {name: FakeReplica() for name in self.replicas}

    async def until(self, condition: Callable[["FakeAdmin"], bool]) -> None:
        """Looked at after each request."""
        async with asyncio.timeout(PATIENCE_S), self.changed:
            await self.changed.wait_for(lambda: condition(self))

    async def until_told(self, *words: str) -> None:
        await self.until(lambda admin: admin.told[-len(words) :] == list(words))

    async def _answer(self, asked: Asked) -> Says | None:
        answer = self.troubles.pop(0) if self.troubles else self._served(asked)
        async with self.changed:
            self.changed.notify_all()
        return answer

    def _served(self, asked: Asked) -> Says:
        match = _PATH.fullmatch(asked.path)
        if self._key is not None and asked.headers.get("authorization") != f"Bearer {self._key}":
            return _refusal(401, "Wrong key.")
        if match is None:
            return _refusal(404, "No such route.")
        name, what = match.groups()
        if name is None:
            return _json({"object": "list", "data": [one.document(key) for key, one in self.replicas.items()]})
        if name not in self.replicas:
            return _refusal(404, f"No replica is called {name}; there are {', '.join(self.replicas)}.")
        replica = self.replicas[name]
        if what is None:
            self.looks += 1
            return _json(replica.document(name))
        if asked.method != "POST":
            return _refusal(405, "POST it.")
        return self._told(name, replica, what, json.loads(asked.body))

    def _told(self, name: str, replica: FakeReplica, what: str, body: dict[str, Any]) -> Says:
        if what == "restore" and replica.lifecycle == "ready" and replica.reason is None:
            self.refused.append(what)
            return _refusal(409, f"{name} is ready; there is nothing to end.")
        self.posts.append((what, body))
        match what:
            case "restore":
                self.replicas[name] = replica = FakeReplica()
            case "drain":
                replica.lifecycle, replica.reason = "draining", "drain"
                replica.deadline_unix_s = None if "deadline_s" not in body else time.time() + body["deadline_s"]  # noqa: TID251
            case _:
                replica.reason = body["kind"]
                if body["kind"] != "rebalance":
                    replica.lifecycle = "reclaiming" if body["kind"] == "reclaim" else "draining"
                    replica.deadline_unix_s = body["deadline_unix_s"]
        return _json(replica.document(name))


def _json(document: object) -> Says:
    return Says(body=json.dumps(document).encode(), headers={"content-type": "application/json"})


def _refusal(status: int, message: str) -> Says:
    error = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
    return Says(status, json.dumps(error).encode(), {"content-type": "application/json"})
