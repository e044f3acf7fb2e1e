"""What one event of an engine's stream means for the client: passed on, repaired, withheld - or the end of the matter.

Decides per event, without I/O: the relay feeds whole events and asks at the end what to say. Plain content deltas, nearly all of
a stream, are recognised by their bytes and passed on as they are; only the rest is parsed. One client's stream may be told by several
engines in turn: the filter stays, and makes it one.
"""

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from backends.upstream.sse import SseSplitter
from router.openai.documents import Document, check_document
from router.openai.errors import ApiError, from_stream_event, stream_error_event, upstream_garbled, upstream_lost
from router.openai.events import DONE, read_event, write_event, write_json
from router.openai.journal import Journal
from router.openai.plain import CHOICES, ID_MEMBER, PLAIN_CHAT, PLAIN_TEXT, Mould
from router.openai.repairs import as_chat, hide_ids, repair_chat_choice, silent_choice, told_tokens
from router.openai.stops import StopGuard
from router.openai.usage import Usage, read_usage, whole_usage

__all__ = ["ChunkFilter", "Document", "End", "Usage", "check_document"]

_IDENTITY: Final = ("id", "object", "created", "model")
# How vLLM ends a request that it gives up: no answer of the model's, though it looks like one.
_BROKEN_OFF: Final = frozenset({"abort", "error"})


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """The last bytes for the client: usage if owed and `[DONE]`; or, where the answer is not whole, the error event."""

    complete: bool
    tail: bytes
    error: ApiError | None = None


class ChunkFilter:
    """One stream. `expected_choices`: so many finish reasons make an answer whole.

    `journal` is told what was said. `hide_ids`: where token ids come they were asked for by the gateway, not by the client. `guard`: stop
    strings are the gateway's to find. `known`: what moulds of all streams know of texts.
    """

    def __init__(
        self,
        *,
        strip_usage: bool,
        expected_choices: int,
        chat: bool,
        journal: Journal | None = None,
        known: set[bytes] | None = None,
    ) -> None:
        self.tokens = 0  # with content, by their ids; events, a choice each, where no ids come: an estimate until `usage` is there
        self.usage: Usage | None = None  # of the whole answer
        self.engine_usage: Usage | None = None  # of what this engine did of it
        self.done = False  # the engine said [DONE]
        self.error: ApiError | None = None
        self.journal = journal
        self.guard: StopGuard | None = None
        self.hide_ids = False
        self._known = known
        self._strip_usage = strip_usage
        self._expected = expected_choices
        self._chat = chat
        self._plain = (PLAIN_CHAT if chat else PLAIN_TEXT).match
        self._splitter = SseSplitter()
        self._over = False  # every choice's finish reason was passed on
        self._failed = False  # what it said last makes no sense, or is an error
        self._cut = False  # in the middle of an event
        self._head: bytes | None = (
            None  # of this stream's events up to the choice's index, once a chunk showed it; then the mould knows it
        )
        self._mould: Mould | None = None  # of its plain deltas, once one was seen
        self._identity: dict[str, Any] | None = None
        self._begun = 0  # so many choices, the first ones, have been heard of
        self._finished: dict[int, str] = {}  # why, by choice
        self._usage_chunk: bytes | None = None  # held until every choice has finished: it comes last
        self._usage_sent = False
        self._last_usage: dict[str, Any] | None = None
        self._before = 0  # tokens that other engines said before
        self._reshape = False  # this engine tells plain completions, and the client hears a chat

    def go_on(self, *, tokens_before: int, reshape: bool) -> None:
        """The rest comes from another engine, whose prompt has the `tokens_before` that were said; `reshape`: as plain completions."""
        self._splitter, self._cut, self._head, self._mould = SseSplitter(), False, None, None
        self.done, self.error, self._failed = False, None, False
        self.usage = self.engine_usage = None
        self._usage_chunk = self._last_usage = None
        self._before, self._reshape = tokens_before, reshape

    @property
    def finished(self) -> bool:
        """Every choice had its finish reason."""
        return len(self._finished) >= self._expected

    @property
    def finish_reasons(self) -> tuple[str, ...]:
        """So far, by choice."""
        return tuple(self._finished[index] for index in sorted(self._finished))

    @property
    def model(self) -> str | None:
        """As the first chunk named it."""
        name = None if self._identity is None else self._identity.get("model")
        return name if isinstance(name, str) else None

    @property
    def complete(self) -> bool:
        """The client may be told that this was the whole answer."""
        return self.finished and self.error is None

    def read(self, data: bytes) -> bytes:
        """The bytes to forward for what was read of the stream, cut anywhere. Raises EventTooLarge.

        Whole plain deltas at its beginning, mostly all of it, are passed on without being taken apart.
        """
        out: list[bytes] = []
        plain = 0 if self._cut else self._plain_until(data, out)
        if plain == len(data):
            return b"".join(out) if out else data
        if not out:
            out.append(data[:plain])
        for event in self._splitter.feed(data[plain:]):
            kept = self.feed(event)
            if kept:
                out.append(kept)
            if self.error is not None or self.done:
                break
        self._cut = not self._splitter.idle
        return b"".join(out)

    def read_frames(self, data: bytes) -> int:
        """Where the chunks of HTTP/1.1 at the beginning of `data` end that hold a plain delta each and are passed on as they are; 0: nowhere.

        They are counted. The framing tells where each text ends, so that nothing has to be searched, taken apart or written again.
        """
        mould = self._mould
        if mould is None or mould.has_ids or self._cut:
            return 0
        end = 0
        while end < len(data):
            after, text = mould.framed(data, end)
            if not after:
                break
            self.tokens += 1
            if self.journal is not None:
                if mould.reasoning:
                    self.journal.thought(None)
                else:
                    self.journal.said(text, None)
            end = after
        return end

    def feed(self, event: bytes) -> bytes | None:
        """The bytes to forward for one whole event; None: nothing. After an error or [DONE] nothing passes any more."""
        out: list[bytes] = []
        if self._plain_until(event, out) == len(event):
            return b"".join(out) if out else event
        if self.error is not None or self.done:
            return None
        return self._look(event)

    def _plain_until(self, data: bytes, out: list[bytes]) -> int:
        """Where the plain deltas at its beginning end; they are counted. `out`: what of them is passed on, where that is not all."""
        end, kept, size = 0, 0, len(data)
        while end < size:
            mould, member = self._mould, None
            after, text, ids = (0, b"", None) if mould is None else mould.read(data, end)
            if mould is not None and after:
                self.tokens += 1
                if self.journal is not None:
                    if mould.reasoning:
                        self.journal.thought(ids)
                    else:
                        self.journal.said(text, ids)
                if ids is not None and self.hide_ids:
                    member = mould.id_member(after, ids)
            else:
                after, member = self._by_expression(data, end)
                if not after:
                    break
            if member is not None:
                out.append(data[kept : member[0]])
                kept = member[1]
            end = after
        if kept:
            out.append(data[kept:end])
        return end

    def _by_expression(self, data: bytes, start: int) -> tuple[int, tuple[int, int] | None]:
        """The plain delta that begins there: its end, and from where to where it is not passed on. An end of 0: it is none."""
        head = self._head if self._mould is None else self._mould.head
        if head is None or not data.startswith(head, start) or (plain := self._plain(data, start + len(head))) is None:
            return 0, None
        index, reasoning, text, id_member, ids = plain.groups()
        if int(index) >= self._begun:
            return 0, None
        if text is not None or (ids is not None and self.tokens):
            # Ids alone are half a character, or what is not shown; the first token is one that is.
            self.tokens += 1 if ids is None else 1 + ids.count(b",")
        if text is not None and (id_member is None) == (ids is None) and (self._mould is None or self._expected == 1):
            self._mould, self._head = Mould(data, start, plain, self._known), None
        if self.journal is not None:
            if reasoning is not None and text is not None:
                self.journal.thought(ids)
            else:
                self.journal.said(text, ids)
        return plain.end(), plain.span(ID_MEMBER) if id_member is not None and self.hide_ids else None

    def end(self) -> End:
        """The engine has no more to say: is the answer whole?"""
        if self.error is None and not self.finished:
            # A client takes an end without finish reason for success; so it is said aloud.
            self._fail(upstream_lost())
        if self.error is not None:
            return End(complete=False, tail=stream_error_event(self.error), error=self.error)
        return End(complete=True, tail=(self._owed_usage() or b"") + write_event(DONE))

    def _look(self, raw: bytes) -> bytes | None:
        event = read_event(raw)
        if event.data is None:
            return None
        if event.data.strip() == DONE:
            self.done = True
            self._head = self._mould = None
            return self._owed_usage() if self.complete else None
        try:
            chunk = msgspec.json.decode(event.data)
        except (ValueError, RecursionError) as e:  # msgspec.DecodeError and UnicodeDecodeError are ValueErrors
            self._fail(upstream_garbled(f"malformed event: {e}"))
            return None
        if not isinstance(chunk, dict):
            self._fail(upstream_garbled("an event that is no object"))
            return None
        if event.name == b"error" or chunk.get("error") is not None or chunk.get("object") == "error":
            self._fail(from_stream_event(chunk))
            return None
        written = raw if event.plain else write_event(event.data)
        return self._chunk(chunk, written, reframed=not event.plain and event.data.find(b"\n") >= 0)

    def _chunk(self, chunk: dict[str, Any], raw: bytes, *, reframed: bool) -> bytes | None:
        choices = chunk.get("choices")
        if choices is not None and not (isinstance(choices, list) and all(isinstance(c, dict) for c in choices)):
            self._fail(upstream_garbled("`choices` that are no list of objects"))
            return None
        if self._reshape:
            as_chat(chunk)
        edited = self._same_identity(chunk) or reframed or self._reshape
        edited |= self._record_usage(chunk)
        if self.journal is not None:
            edited |= self._prompt(chunk, self.journal)
        if not choices:
            return self._usage_only(chunk, None if edited or choices is None else raw)
        before: list[bytes] = []
        for position, choice in enumerate(choices):
            edited |= self._choice(choice, position, before)
            if self._failed:
                return None
        if self._head is None and self._mould is None and self.guard is None and not self._reshape:
            self._learn_head(raw)
        self._over = self.finished
        return b"".join((*before, write_json(chunk) if edited else raw))

    def _choice(self, choice: dict[str, Any], position: int, before: list[bytes]) -> bool:
        """Whether the choice was repaired; `before` gets the silent first chunks of choices that it overtook."""
        index = choice.get("index")
        edited = type(index) is not int
        if type(index) is not int:
            index = choice["index"] = position
        if not 0 <= index < self._expected:
            self._fail(upstream_garbled(f"choice {index} of {self._expected}"))
            return False
        first = index >= self._begun
        if first:
            # Clients index a list by it (openai-python's accumulator raises IndexError): lower ones appear first.
            before += [write_json(self._silent(i)) for i in range(self._begun, index)]
            self._begun = index + 1
        if self._chat:
            edited |= repair_chat_choice(choice, first=first)
        self.tokens += told_tokens(choice)
        if self.journal is not None:
            self.journal.choice(choice)
        if self.hide_ids:
            edited |= hide_ids(choice)
        if self.guard is not None:
            edited |= self._guarded(choice, self.guard)
        reason = choice.get("finish_reason")
        if not isinstance(reason, str | None):
            self._fail(upstream_garbled("a finish reason that is no string"))
        elif reason in _BROKEN_OFF:
            self._fail(upstream_lost())
        elif reason:
            self._finished[index] = reason
        return edited

    def _same_identity(self, chunk: dict[str, Any]) -> bool:
        """Make id, created and model those of the first chunk; whether that changed anything."""
        if self._identity is None:
            self._identity = {name: chunk[name] for name in _IDENTITY if name in chunk}
            return False
        changed = {name: value for name, value in self._identity.items() if chunk.get(name) != value}
        chunk.update(changed)
        return bool(changed)

    def _guarded(self, choice: dict[str, Any], guard: StopGuard) -> bool:
        """Hold back what may be a stop string's beginning; end the choice where one is whole."""
        said, name = (choice["delta"], "content") if self._chat else (choice, "text")
        text = said.get(name)
        shown = guard.feed(text) if isinstance(text, str) else ""
        if guard.stopped is not None:
            self.done |= not choice.get("finish_reason")  # the engine does not know it
            choice["finish_reason"], choice["stop_reason"] = "stop", guard.stopped
        elif choice.get("finish_reason"):
            shown += guard.rest()
        if shown == (text or ""):
            return False
        said[name] = shown
        return True

    def _prompt(self, chunk: dict[str, Any], journal: Journal) -> bool:
        """The first engine's prompt is the client's, if it asked; what went to later ones is nobody's business. Whether it was cut."""
        holders = [holder for holder in (chunk, *(chunk.get("choices") or ())) if holder.get("prompt_token_ids")]
        if self._before == 0:
            for holder in holders:
                journal.prompted(holder["prompt_token_ids"])
        if self._before == 0 and not self.hide_ids:
            return False
        for holder in holders:
            del holder["prompt_token_ids"]
        return bool(holders)

    def _record_usage(self, chunk: dict[str, Any]) -> bool:
        """Whether it was made that of the whole answer."""
        usage = read_usage(chunk.get("usage"))
        if usage is None:
            return False
        self.engine_usage = usage
        if self._before:
            chunk["usage"] = whole_usage(chunk["usage"], self._before)
        self.usage = read_usage(chunk["usage"])
        self._last_usage = chunk["usage"]
        return self._before > 0

    def _usage_only(self, chunk: dict[str, Any], raw: bytes | None) -> bytes | None:
        """A chunk without choices says the usage, or nothing at all; clients that did not ask for it crash on the empty list."""
        if self._strip_usage or self._usage_sent or not isinstance(chunk.get("usage"), dict):
            return None
        self._usage_chunk = raw or write_json({**chunk, "choices": []})
        return self._owed_usage() if self.finished else None

    def _owed_usage(self) -> bytes | None:
        """Exactly one usage chunk, last: the engine's own, or one made of the usage that came with a choice."""
        if self._strip_usage or self._usage_sent:
            return None
        if self._last_usage is None:
            self._last_usage = self.journal.usage() if self.journal is not None else None
            if self._last_usage is None:
                return None
        self._usage_sent = True
        return self._usage_chunk or write_json({**(self._identity or {}), "choices": [], "usage": self._last_usage})

    def _silent(self, index: int) -> dict[str, Any]:
        return {**(self._identity or {}), "choices": [silent_choice(index, chat=self._chat)]}

    def _learn_head(self, raw: bytes) -> None:
        """Events that start with the same bytes have the same id, created and model; that much is checked once, by parsing."""
        at = raw.find(CHOICES)
        if at < 0:
            return
        try:
            head = msgspec.json.decode(raw[len(b"data: ") : at] + b'"choices":[]}')
        except ValueError:
            return
        identity = self._identity or {}
        if {**head, **identity} == head and head.keys().isdisjoint({"error", "usage"}):
            self._head = raw[: at + len(CHOICES)]

    def _fail(self, error: ApiError) -> None:
        """What an engine says once every choice has finished takes nothing back."""
        self._head = self._mould = None
        self._failed = True
        if self._over:
            self.done = True
        else:
            self.error = error
