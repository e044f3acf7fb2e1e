"""A Kubernetes API that serves what a test records: lists by page, watches that resume, bookmarks, 410 Gone, cut connections.

Speaks what `docs` of the API say of lists and watches: versions that rise with each change, `limit` and `continue`, label selectors,
newline-delimited events. It holds EndpointSlices and Nodes only.
"""

import asyncio
import json
from copy import deepcopy
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, urlsplit

Object = dict[str, Any]
SLICES = "endpointslices"
NODES = "nodes"


@dataclass(eq=False)
class _Watch:
    kind: str
    selector: str
    writer: asyncio.StreamWriter
    over: asyncio.Event = field(default_factory=asyncio.Event)


class FakeKubernetes:
    """A context manager; `put` and `delete` change what there is, `asked` is what was asked."""

    def __init__(self, *, page: int = 500) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.forbidden: set[str] = set()  # kinds that may not be read
        self.expired_below = 0  # versions that a watch cannot go on from any more
        self.refuse_watches_with_status = False  # 410 as an HTTP status instead of an ERROR event
        self._page = page
        self._version = 100
        self._objects: dict[str, dict[str, Object]] = {SLICES: {}, NODES: {}}
        self._history: list[tuple[int, str, str, Object]] = []
        self._watches: set[_Watch] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        await self.come_back()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.leave()

    async def come_back(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, reuse_address=True)
        self._port = self._server.sockets[0].getsockname()[1]

    async def leave(self) -> None:
        """The API is not there; who watched is cut off."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- what there is -----------------------------------------------------------------------------------------------

    def put(self, kind: str, thing: Object) -> None:
        name = thing["metadata"]["name"]
        event = "MODIFIED" if name in self._objects[kind] else "ADDED"
        self._change(kind, event, thing)

    def delete(self, kind: str, name: str) -> None:
        self._change(kind, "DELETED", self._objects[kind][name])

    def bookmark(self, kind: str) -> None:
        """Nothing has changed, but the version has moved on."""
        self._version += 1
        thing = {"metadata": {"resourceVersion": str(self._version)}}
        for watch in self._of(kind):
            self._send(watch, {"type": "BOOKMARK", "object": thing})

    def end_watches(self) -> None:
        """As the API does when their time is up."""
        for watch in list(self._watches):
            watch.over.set()

    def expire(self) -> None:
        """Whoever watches is told that it is too old, and so is who comes with what was known until now."""
        self._version += 1
        self.expired_below = self._version
        for watch in list(self._watches):
            self._send(watch, _error(410, "too old resource version"))
            watch.over.set()

    @property
    def watching(self) -> list[str]:
        return sorted(watch.kind for watch in self._watches)

    def _change(self, kind: str, event: str, thing: Object) -> None:
        self._version += 1
        thing = deepcopy(thing)
        thing["metadata"]["resourceVersion"] = str(self._version)
        if event == "DELETED":
            del self._objects[kind][thing["metadata"]["name"]]
        else:
            self._objects[kind][thing["metadata"]["name"]] = thing
        self._history.append((self._version, kind, event, thing))
        for watch in self._of(kind):
            if _selected(thing, watch.selector):
                self._send(watch, {"type": event, "object": thing})

    def _of(self, kind: str) -> list[_Watch]:
        return [watch for watch in self._watches if watch.kind == kind]

    # -- HTTP --------------------------------------------------------------------------------------------------------

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                await self._answer(head.split(" ")[1], writer)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client left, or the test is over
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer(self, target: str, writer: asyncio.StreamWriter) -> None:
        parts = urlsplit(target)
        query = dict(parse_qsl(parts.query))
        kind = parts.path.rsplit("/", 1)[-1]
        self.asked.append((kind, query))
        if kind in self.forbidden:
            _whole(writer, 403, {"kind": "Status", "code": 403, "message": f"{kind} is forbidden: no role allows list"})
        elif query.get("watch", "").lower() == "true":
            await self._watch(kind, query, writer)
        else:
            _whole(writer, 200, self._list(kind, query))

    def _list(self, kind: str, query: dict[str, str]) -> Object:
        selector = query.get("labelSelector", "")
        found = [self._objects[kind][name] for name in sorted(self._objects[kind])]
        found = [thing for thing in found if _selected(thing, selector)]
        start, limit = int(query.get("continue", "0")), min(int(query.get("limit", "500")), self._page)
        metadata = {"resourceVersion": str(self._version)}
        if start + limit < len(found):
            metadata["continue"] = str(start + limit)
        return {"kind": "List", "metadata": metadata, "items": found[start : start + limit]}

    async def _watch(self, kind: str, query: dict[str, str], writer: asyncio.StreamWriter) -> None:
        version = int(query["resourceVersion"])
        if version < self.expired_below and self.refuse_watches_with_status:
            _whole(writer, 410, {"kind": "Status", "code": 410, "message": "too old resource version"})
            return
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        watch = _Watch(kind, query.get("labelSelector", ""), writer)
        if version < self.expired_below:
            self._send(watch, _error(410, "too old resource version"))
        else:
            for at, of, event, thing in self._history:
                if at > version and of == kind and _selected(thing, watch.selector):
                    self._send(watch, {"type": event, "object": thing})
            self._watches.add(watch)
            try:
                await watch.over.wait()
            finally:
                self._watches.discard(watch)
        writer.write(b"0\r\n\r\n")

    @staticmethod
    def _send(watch: _Watch, event: Object) -> None:
        """In two chunks: a line need not come at once."""
        line = json.dumps(event).encode() + b"\n"
        for part in (line[:17], line[17:]):
            watch.writer.write(b"%x\r\n%b\r\n" % (len(part), part))


def endpoint(address: str, pod: str, node: str = "", **conditions: bool) -> Object:
    """One of a slice."""
    told = {"ready": True, "serving": True, "terminating": False, **conditions}
    found: Object = {
        "addresses": [address],
        "conditions": told,
        "targetRef": {"kind": "Pod", "name": pod, "uid": f"uid-{pod}"},
    }
    return {**found, "nodeName": node} if node else found


def endpoint_slice(name: str, service: str, *endpoints: Object, port: int = 8000, port_name: str = "http") -> Object:
    return {
        "metadata": {"name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4",
        "endpoints": list(endpoints),
        "ports": [{"name": port_name, "port": port, "protocol": "TCP"}],
    }


def node(name: str, labels: dict[str, str], *taints: str) -> Object:
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": [{"key": key, "effect": "NoSchedule"} for key in taints]},
    }


def _selected(thing: Object, selector: str) -> bool:
    labels = thing["metadata"].get("labels") or {}
    pairs = [one.split("=", 1) for one in selector.split(",") if one]
    return all(labels.get(key) == value for key, value in pairs)


def _error(code: int, message: str) -> Object:
    return {"type": "ERROR", "object": {"kind": "Status", "code": code, "reason": "Expired", "message": message}}


def _whole(writer: asyncio.StreamWriter, status: int, document: Object) -> None:
    body = json.dumps(document).encode()
    head = f"HTTP/1.1 {status} -\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
