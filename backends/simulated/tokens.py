"""Byte-level tokenizer and deterministic text: what a prompt's tokens are, and which word comes next.

Word k after a prompt is a pure function of (prompt, k), so every engine says the same. A prompt that ends in words this engine
itself would have generated continues their sequence (`split_prompt`): a migrated stream goes on as if nothing had happened.
"""

import re
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from backends.simulated.words import WORDS

EOS_ID = 1  # the empty piece: `decode` renders it as nothing
MAX_TOKEN_ID = 2**53 - 1  # exact in JSON readers that keep numbers as doubles
MAX_RESUME_WORDS = 16_384  # verified back from a prompt's end; longer outputs start a sequence of their own

# About 4 bytes of English per piece. A space opens a piece and never closes one, so appending " word" never changes earlier pieces.
_PIECE = re.compile(rb" ?[^ \n]{1,5}|[ \n]")
_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Split:
    """Where a prompt's own text ends: `root` seeds the sequence, `start` words of it are in the prompt already."""

    root: int
    start: int


def _pack(piece: bytes) -> int:
    return int.from_bytes(b"\x01" + piece, "big")


WORD_IDS: tuple[int, ...] = tuple(_pack(b" " + word.encode()) for word in WORDS)
_INDEX_OF_ID: Mapping[int, int] = {token: index for index, token in enumerate(WORD_IDS)}


def encode(text: str) -> list[int]:
    """Token ids of a text; lone surrogates (JSON may carry them) become `?`."""
    return [_pack(piece) for piece in _PIECE.findall(text.encode("utf-8", "replace"))]


def decode(ids: Sequence[int]) -> bytes:
    """Bytes of token ids; an id that packs no piece renders as `<id>`."""
    return b"".join(map(_unpack, ids))


def _unpack(token: int) -> bytes:
    packed = token.to_bytes(8, "big").lstrip(b"\0")
    return packed[1:] if packed[:1] == b"\x01" else b"<%d>" % token


def word_index(root: int, k: int) -> int:
    """Which word is number `k` of a sequence."""
    return mix(root, k) >> 56  # 256 words


def mix(root: int, k: int) -> int:
    """64 even bits from two numbers: splitmix64's finaliser."""
    x = (root * 0x9E3779B97F4A7C15 + k * 0xD1B54A32D192ED03 + 0x2545F4914F6CDD1D) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def word_text(root: int, k: int) -> str:
    return " " + WORDS[word_index(root, k)]


def word_id(root: int, k: int) -> int:
    return WORD_IDS[word_index(root, k)]


def choice_root(root: int, index: int) -> int:
    """Choice 0 of `n` says what a request with n=1 would; the others get sequences of their own."""
    return root if index == 0 else zlib.crc32(index.to_bytes(4, "big"), root)


def split_prompt(ids: Sequence[int]) -> Split:
    """Find the longest tail of the prompt that this engine would have generated after what stands before it.

    Longest first makes resumption exact: what does not verify for a prompt cannot verify once more words follow it. Each wrong
    boundary costs one or two comparisons, as a wrong sequence agrees with a word once in 256.
    """
    words = _trailing_words(ids)
    head = len(ids) - len(words)
    root = zlib.crc32(_packed(ids[:head]))
    for boundary in range(len(words)):
        if _continues(words, boundary, root):
            return Split(root, len(words) - boundary)
        root = zlib.crc32(_packed(ids[head + boundary : head + boundary + 1]), root)
    return Split(root, 0)


def _continues(words: Sequence[int], boundary: int, root: int) -> bool:
    return all(words[boundary + k] == word_index(root, k) for k in range(len(words) - boundary))


def expected_text(prompt: str | Sequence[int], tokens: int, *, index: int = 0) -> str:
    """The words an engine generates after a prompt: what test clients compare a stream with."""
    split = split_prompt(encode(prompt) if isinstance(prompt, str) else prompt)
    root = choice_root(split.root, index)
    return "".join(word_text(root, split.start + k) for k in range(tokens))


def _trailing_words(ids: Sequence[int]) -> list[int]:
    words: list[int] = []
    for token in reversed(ids[-MAX_RESUME_WORDS:]):
        word = _INDEX_OF_ID.get(token)
        if word is None:
            break
        words.append(word)
    words.reverse()
    return words


def _packed(ids: Sequence[int]) -> bytes:
    return array("Q", ids).tobytes()
