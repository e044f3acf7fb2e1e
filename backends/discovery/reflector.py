"""One kind of Kubernetes object as the API has it now: listed once, then kept by a watch, listed again where the watch lost its place.

What was known stays known while the API cannot be reached. Decides nothing about the objects.
"""

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from http import HTTPStatus
from typing import Any, Final

from backends.backoff import Backoff

log = logging.getLogger("penstock.discovery")

_WATCH_S: Final = (
    60  # the API ends a watch then; the next goes on at its last version, and a dead connection is found out
)
_PATIENCE_S: Final = 15.0  # beyond that, and for a list
_PAGE: Final = 500  # objects in one answer
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0

Object = dict[str, Any]
Call = Callable[..., Awaitable[Any]]  # a list method of kubernetes_asyncio, its arguments but the paging ones bound


class _Gone(Exception):
    """The version is too old for the API: all must be listed again."""


class _Refused(Exception):
    """The API said no; the text says what."""


class Reflector:
    """`objects`, by namespace and name, are true once `listed` is set."""

    def __init__(self, what: str, call: Call, on_change: Callable[[], None]) -> None:
        self.objects: dict[tuple[str, str], Object] = {}
        self.listed = asyncio.Event()
        self._what = what
        self._call = call
        self._on_change = on_change
        self._said = ""

    async def run(self) -> None:
        """Until cancelled."""
        from aiohttp import ClientError  # noqa: PLC0415 - comes with an extra

        backoff = Backoff(_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S)
        version: str | None = None
        while True:
            try:
                if version is None:
                    version = await self._list()
                async with aclosing(self._watch(version)) as events:
                    async for event in events:
                        version = self._take(event)
                        backoff.reset()
                self._said = ""
                continue
            except _Gone:
                version = None
                log.info("%s: the watch is too old; all are listed again", self._what)
            except (ClientError, OSError, TimeoutError, ValueError, KeyError, _Refused) as error:
                self._say(str(error) or type(error).__name__)
            await asyncio.sleep(backoff.next_s())

    async def _list(self) -> str:
        """All of them, page by page; the version that the watch goes on from."""
        found: dict[tuple[str, str], Object] = {}
        more: dict[str, str] = {}
        while True:
            async with asyncio.timeout(_PATIENCE_S):
                response = await self._call(limit=_PAGE, **more, _preload_content=False)
                try:
                    page = json.loads(await _good(response))
                finally:
                    response.release()
            for thing in page.get("items") or ():
                found[_key(thing)] = thing
            metadata = page["metadata"]
            if not metadata.get("continue"):
                break
            more = {"_continue": metadata["continue"]}
        self.objects = found
        self.listed.set()
        self._on_change()
        return str(metadata["resourceVersion"])

    async def _watch(self, version: str) -> AsyncGenerator[Object, None]:
        """Events from there on, until the API ends the watch."""
        async with asyncio.timeout(_WATCH_S + _PATIENCE_S):
            response = await self._call(
                resource_version=version,
                watch=True,
                allow_watch_bookmarks=True,
                timeout_seconds=_WATCH_S,
                _preload_content=False,
            )
            try:
                if response.status != HTTPStatus.OK:
                    await _good(response)
                while line := await response.content.readline():
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        _refuse(int(event["object"].get("code") or 0), str(event["object"].get("message")))
                    yield event
            finally:
                response.close()

    def _take(self, event: Object) -> str:
        """The version after it."""
        kind, thing = event["type"], event["object"]
        if kind in {"ADDED", "MODIFIED"}:
            self.objects[_key(thing)] = thing
        elif kind == "DELETED":
            self.objects.pop(_key(thing), None)
        if kind != "BOOKMARK":
            self._on_change()
        return str(thing["metadata"]["resourceVersion"])

    def _say(self, trouble: str) -> None:
        if trouble != self._said:
            log.warning("%s: %s; what was known stays", self._what, trouble)
        self._said = trouble


async def _good(response: Any) -> bytes:
    """The body of an answer that is none of an error."""
    body: bytes = await response.read()
    if response.status != HTTPStatus.OK:
        try:
            message = str(json.loads(body).get("message"))
        except (ValueError, AttributeError):
            message = body[:200].decode("utf-8", "replace")
        _refuse(response.status, message)
    return body


def _refuse(status: int, message: str) -> None:
    if status == HTTPStatus.GONE:
        raise _Gone
    hint = "; docs/discovery.md has the role that the gateway needs" if status == HTTPStatus.FORBIDDEN else ""
    raise _Refused(f"the API answers {status}: {message}{hint}")


def _key(thing: Object) -> tuple[str, str]:
    metadata = thing["metadata"]
    return metadata.get("namespace", ""), metadata["name"]
