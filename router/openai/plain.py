"""Recognises the plain content deltas of a stream, nearly all of it, by their bytes alone.

One choice, one text, no finish reason, no usage; whatever else an event may be is for `router.openai.chunks` to parse. Pure.
"""

import re
from string import hexdigits
from typing import Final

# Well-formed UTF-8 beyond ASCII (RFC 3629): what is not would end a client's decoder, so such events are looked at, and refused.
_WIDE: Final = (
    rb"[\xc2-\xdf][\x80-\xbf]|\xe0[\xa0-\xbf][\x80-\xbf]|[\xe1-\xec\xee\xef][\x80-\xbf]{2}|\xed[\x80-\x9f][\x80-\xbf]"
    rb"|\xf0[\x90-\xbf][\x80-\xbf]{2}|[\xf1-\xf3][\x80-\xbf]{3}|\xf4[\x80-\x8f][\x80-\xbf]{2}"
)
# The group is there where the string says something.
_STRING: Final = rb'"((?:[^"\\\x00-\x1f\x80-\xff]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4})|' + _WIDE + rb')++)?"'
_NULLS: Final = rb'(?:,"[a-z_]{1,40}":null)*'  # not possessive: before 3.11.5 that forgets where a try began, and no ids are found after it
# The token ids of `return_token_ids`: the whole member, and what stands in its brackets.
_IDS: Final = rb'(?:(,"token_ids":\[(\d+(?:,\d+)*+)?\])' + _NULLS + rb")?"
_INDEX: Final = rb"(0|[1-9]\d{0,3})"
_END: Final = _NULLS + _IDS + rb"\}\]" + _NULLS + rb"\}\n\n"
# What follows `"choices":[{"index":` in a delta that needs no look.
PLAIN_CHAT: Final = re.compile(
    _INDEX + rb',"delta":\{"(?:content|(reasoning|reasoning_content))":' + _STRING + rb"\}" + _END
)
PLAIN_TEXT: Final = re.compile(_INDEX + rb',(?:"text"|((?!))):' + _STRING + _END)  # which has no reasoning
INDEX: Final = 1  # the numbers of its groups
REASONING: Final = 2
TEXT: Final = 3
ID_MEMBER: Final = 4
IDS: Final = 5
CHOICES: Final = b'"choices":[{"index":'


class Mould:
    """How a stream writes its plain deltas around their texts and token ids. Learned of one, it recognises the next without an expression.

    What it does not know, an escape in a text for example, the expressions above may; what it does know they would find the same.
    """

    __slots__ = (
        "_after_bytes",
        "_after_ids",
        "_after_text",
        "_before_bytes",
        "_before_text",
        "_known",
        "_member_bytes",
        "has_ids",
        "head_bytes",
        "reasoning",
    )

    def __init__(self, data: bytes, start: int, plain: re.Match[bytes], known: set[bytes] | None = None) -> None:
        """`plain`: a match with a text, of the event that begins at `start`. `known`: short texts that stand as they are; gets more of them.

        Tokens are a few thousand different ones, and looking one up takes two fifths of what looking through it does.
        """
        self._known = set() if known is None else known
        text_at, text_end = plain.span(TEXT)
        ids_at, ids_end = plain.span(IDS)
        self.has_ids = ids_at >= 0
        self._before_text = data[start:text_at]
        self._before_bytes = text_at - start
        self.head_bytes = plain.start() - start
        self._after_text = data[text_end : ids_at if self.has_ids else plain.end()]
        self._after_bytes = len(self._after_text)
        self._after_ids = data[ids_end : plain.end()] if self.has_ids else b""
        self._member_bytes = ids_at - plain.start(ID_MEMBER) if self.has_ids else 0  # of the ids' member, before them
        self.reasoning = plain.group(REASONING) is not None

    def read(self, data: bytes, start: int) -> tuple[int, bytes, bytes | None]:
        """The event that begins at `start`: its end, its text, its token id. An end of 0: it is none of these.

        Once a token: slices and integers, because `startswith` and `b"x" in` take CPython five times as long.
        """
        text_at = start + self._before_bytes
        if data[start:text_at] != self._before_text:
            return _OTHER
        end = len(data)
        text_end = end - self._after_bytes  # if this event is all there is, as mostly
        if self.has_ids or text_end - text_at > _SHORT or data[text_end:] != self._after_text:
            text_end = data.find(_QUOTE, text_at)
            end = text_end + self._after_bytes
            if text_end < 0 or data[text_end:end] != self._after_text:
                return _OTHER
        if text_end <= text_at:  # a slice that ends before it begins is an error in compiled code
            return _OTHER
        text = data[text_at:text_end]
        if not (text in self._known or self._stands(text)):
            return _OTHER
        return self._read_ids(data, end, text) if self.has_ids else (end, text, None)

    @property
    def head(self) -> bytes:
        """What stands before the choice's index, in all events of the stream."""
        return self._before_text[: self.head_bytes]

    def framed(self, data: bytes, at: int) -> tuple[int, bytes]:
        """The event that is all of the chunk of HTTP/1.1 which begins at `at`: the chunk's end, its text. An end of 0: it is none of these."""
        start, length, size = at, 0, len(data)
        while start < size and (digit := _HEX_DIGITS[data[start]]) < 16:
            length = length * 16 + digit
            start += 1
            if start - at > _MOST_DIGITS:
                return _NO_CHUNK
        end = start + 2 + length
        if end + 2 > size or data[start] != _RETURN or data[start + 1] != _NEWLINE:
            return _NO_CHUNK
        if data[end] != _RETURN or data[end + 1] != _NEWLINE:
            return _NO_CHUNK
        text = self.text_of(data, start + 2, end)
        return (end + 2, text) if text else _NO_CHUNK

    def text_of(self, data: bytes, start: int, end: int) -> bytes:
        """The text of the event from `start` to `end`, where it is one without token ids; empty: it is not."""
        text_at = start + self._before_bytes
        text_end = end - self._after_bytes
        if text_end <= text_at or data[start:text_at] != self._before_text or data[text_end:end] != self._after_text:
            return b""
        text = data[text_at:text_end]
        return text if text in self._known or self._stands(text) else b""

    def _stands(self, text: bytes) -> bool:
        """Whether it says what it does without escapes: well-formed UTF-8 of which nothing has to be escaped; some of Unicode is missed."""
        if text.strip(_USUAL) and (_BACKSLASH in text or _QUOTE in text or not _is_printable(text)):
            return False
        if len(text) <= _TOKEN_BYTES and len(self._known) < _TOKENS:
            self._known.add(text)
        return True

    def _read_ids(self, data: bytes, ids_at: int, text: bytes) -> tuple[int, bytes, bytes | None]:
        ids_end = data.find(_BRACKET, ids_at)
        if ids_end <= ids_at:
            return _OTHER
        end = ids_end + len(self._after_ids)
        ids = data[ids_at:ids_end]
        if not ids.isdigit() or data[ids_end:end] != self._after_ids:
            return _OTHER
        return end, text, ids

    def id_member(self, end: int, ids: bytes) -> tuple[int, int]:
        """Where the member of the token ids begins and ends, in an event that was read."""
        ids_end = end - len(self._after_ids)
        return ids_end - len(ids) - self._member_bytes, ids_end + 1


_OTHER: Final = (0, b"", None)
_NO_CHUNK: Final = (0, b"")
_HEX_DIGITS: Final = bytes(int(chr(code), 16) if chr(code) in hexdigits else 255 for code in range(256))  # by code
_MOST_DIGITS: Final = 8  # of a size; more are zeros in front, which some readers refuse
_RETURN: Final = 0x0D
_NEWLINE: Final = 0x0A
_SHORT: Final = 64  # bytes of a text that may be all that is left: of a long read each event would copy the rest
_TOKEN_BYTES: Final = 16  # of a text that is worth being known: a token's, hardly what somebody said
_TOKENS: Final = 8192  # that are known: a megabyte at most
_QUOTE: Final = 0x22
_BACKSLASH: Final = 0x5C
_BRACKET: Final = 0x5D
# What stands in a JSON string as it is, of ASCII: stripped of it, nearly every text is empty, which is the fastest way to ask.
_USUAL: Final = bytes(code for code in range(0x20, 0x7F) if code not in (_QUOTE, _BACKSLASH))


def _is_printable(text: bytes) -> bool:
    try:
        return text.decode().isprintable()
    except UnicodeDecodeError:
        return False
