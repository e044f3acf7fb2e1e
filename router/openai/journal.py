"""What one stream has said so far, so that another replica can go on where it stopped.

Decides whether that is possible, and how: by token ids, where the engine tells them, else by text. Keeps JSON-escaped text and ids as
they stood on the wire, not whole events: appending them is all that a token costs.
"""

from enum import StrEnum
from typing import Any

import msgspec


class Mode(StrEnum):
    """How a stream goes on elsewhere; a metric label."""

    EXACT = "exact"  # prompt and answer so far as the engine's own token ids
    TEXT = "text"  # the answer so far as text: tokens at the seam may differ
    NONE = "none"  # not at all, or from the beginning: nothing was said yet


class Journal:
    """One choice of one stream. `room_bytes`: of text and ids together; beyond it the ids go first, then the hope."""

    __slots__ = (
        "_exact",
        "_pending",
        "_prompt_bytes",
        "_room",
        "_thinking",
        "_thought",
        "empty",
        "ids",
        "prompt_ids",
        "text",
        "why_not",
    )

    def __init__(self, *, room_bytes: int, exact: bool, why_not: str | None = None) -> None:
        """`exact`: token ids were asked for. `why_not`: what makes it impossible to go on once something was said."""
        self.text = bytearray()  # JSON-escaped
        self.ids = bytearray()  # each with a comma before it
        self.prompt_ids: bytes | None = None  # "1,2,3"
        self.why_not = why_not
        self.empty = True  # nothing was said: whoever goes on can as well begin
        self._prompt_bytes = 0
        self._pending = b""  # ids whose text has not come: half a character, or nothing to show
        self._exact = exact
        self._room = room_bytes
        self._thinking = False
        self._thought = False

    @property
    def wants_ids(self) -> bool:
        """Whether it is of use to ask an engine for them: nothing was said without."""
        return self._exact and self.why_not is None and (self.empty or self.prompt_ids is not None)

    @property
    def id_count(self) -> int:
        return self.ids.count(b",")

    @property
    def exact(self) -> bool:
        """Whether an engine that takes token ids can go on with the very next one."""
        return self._exact and self.prompt_ids is not None and self.why_not is None and not self._thinking

    @property
    def by_text(self) -> bool:
        """Whether an engine can be given the answer so far as text. What was thought before it is no part of that."""
        return self.why_not is None and not self._thinking and not self._thought

    @property
    def reason(self) -> str:
        """Why neither is possible, for people."""
        return self.why_not or ("reasoning" if self._thinking or self._thought else "")

    def usage(self) -> dict[str, int] | None:
        """As far as token ids tell, for an answer whose engine did not live to say it."""
        if not self.exact or self.prompt_ids is None:
            return None
        prompt, completion = self.prompt_ids.count(b",") + 1, self.id_count
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def plain_text(self) -> str:
        """Raises ValueError where it ends in half a surrogate pair."""
        text: str = msgspec.json.decode(b'"' + self.text + b'"')
        return text

    def prompted(self, ids: object) -> None:
        """The prompt as the engine read it."""
        if self._exact and isinstance(ids, list) and set(map(type, ids)) == {int}:
            self.prompt_ids = msgspec.json.encode(ids)[1:-1]
            self._prompt_bytes = len(self.prompt_ids)
            self._check_room()

    def said(self, text: bytes | None, ids: bytes | None) -> None:
        """One event: its JSON-escaped text, and its token ids as they are written; None: none.

        Ids count only once text has come for them. An engine that is to go on in the middle of a character would say all before it again.
        """
        if text:
            self.empty = self._thinking = False
            if self.why_not is None:
                self.text += text
                if self._exact:
                    self._commit(ids)
                # Looked at here, too: a call for each token would cost more than the sum.
                if len(self.text) + len(self.ids) + self._prompt_bytes > self._room:
                    self._check_room()
        elif ids:
            self._pending += b"," + ids

    def thought(self, ids: bytes | None) -> None:
        """One event of reasoning."""
        self.empty, self._thinking, self._thought = False, True, True
        if self.why_not is None and self._exact:
            self._commit(ids)
            self._check_room()

    def choice(self, choice: dict[str, Any]) -> None:
        """One choice of a chunk that was parsed."""
        found = choice.get("token_ids")
        ids = msgspec.json.encode(found)[1:-1] if isinstance(found, list) and found else None
        delta = choice.get("delta")
        said = delta if isinstance(delta, dict) else choice
        text = said.get("content") if said is delta else said.get("text")
        if any(said.get(name) for name in ("tool_calls", "function_call", "audio", "refusal")):
            self.empty, self.why_not = False, "tool_call"
        if choice.get("logprobs"):
            self.why_not = "logprobs"
        if said.get("reasoning") or said.get("reasoning_content"):
            self.thought(ids)
            ids = None
        self.said(msgspec.json.encode(text)[1:-1] if isinstance(text, str) and text else None, ids)

    def no_ids(self) -> None:
        """An engine would not take them: text must do."""
        self._exact = False

    def seam(self) -> None:
        """What was pending is said again by whoever goes on."""
        self._pending = b""

    def _commit(self, ids: bytes | None) -> None:
        if ids is None and not self._pending:
            self._exact = False  # it does not tell them
            return
        self.ids += self._pending
        if ids:
            self.ids += b"," + ids
        self._pending = b""

    def _check_room(self) -> None:
        if len(self.text) + len(self.ids) + self._prompt_bytes <= self._room:
            return
        self._exact, self.prompt_ids, self._prompt_bytes = False, None, 0
        self.ids.clear()
        if len(self.text) > self._room:
            self.text.clear()
            self.why_not = "journal_overflow"
