"""An answer that its client wants whole, told by its engine as a stream: so it can go on elsewhere like any stream.

Decides what the document looks like that the chunks make. Holds the events of one answer, as long as a document may be.
"""

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from router.client import Client, Headers
from router.openai.errors import upstream_garbled
from router.openai.events import DONE, read_event
from router.relay import MAX_DOCUMENT_BYTES

_OBJECTS: Final = {"chat.completion.chunk": "chat.completion"}


class DocumentClient(Client):
    """Stands before a client while its answer is collected; the client hears nothing until the end, so errors keep their status."""

    def __init__(self, client: Client, headers: Callable[[], Headers]) -> None:
        super().__init__(client.request_id)
        self._client = client
        self._headers = headers
        self._events: list[bytes] = []
        self._size = 0

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Not yet."""

    def respond(self, status: int, body: bytes, headers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.ended = True
        self._client.respond(status, body, headers)

    def _head(self, status: int, headers: Headers) -> None:
        """Never asked for: nothing starts."""

    def _body(self, data: bytes) -> None:
        self._events.append(data)
        self._size += len(data)
        if self._size > MAX_DOCUMENT_BYTES:
            raise upstream_garbled("a document without end")

    def _last(self, data: bytes) -> None:
        document = assemble(b"".join((*self._events, data)))
        self._events.clear()
        self._client.respond(200, msgspec.json.encode(document), self._headers())


def assemble(stream: bytes) -> dict[str, Any]:
    """The document that a whole stream of one choice tells, as vLLM writes it."""
    document: dict[str, Any] = {}
    choice: dict[str, Any] = {"index": 0}
    said: dict[str, Any] = {}
    for raw in stream.split(b"\n\n"):
        event = read_event(raw)
        if event.data is None or event.data == DONE:
            continue
        chunk = msgspec.json.decode(event.data)
        usage, choices = chunk.pop("usage", None), chunk.pop("choices")
        document |= {name: value for name, value in chunk.items() if value is not None}
        document["usage"] = usage or document.get("usage")
        for part in choices:
            _add(said, part.pop("delta") if "delta" in part else {"text": part.pop("text", "")})
            choice |= {name: value for name, value in part.items() if name not in choice or value is not None}
    if (kind := _OBJECTS.get(document.get("object", ""))) is not None:
        document["object"] = kind
    usage = document.pop("usage", None)
    whole = {"index": 0, **({"message": said} if "role" in said else said), **choice}
    return {**document, "choices": [whole], "usage": usage}


def _add(said: dict[str, Any], delta: dict[str, Any]) -> None:
    for name, value in delta.items():
        if isinstance(value, str) and isinstance(said.get(name), str):
            said[name] += value
        elif value is not None or name not in said:
            said[name] = value
