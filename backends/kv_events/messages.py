"""vLLM's KV events as they come off the wire (vllm/distributed/kv_events.py, 0.32), read leniently.

A batch is the msgpack array `[ts, [event, ...], data_parallel_rank]`. Events are maps with their type's name under `type`; older
engines send arrays whose first item is the name. What is not known here - other types, other fields, later items - is passed over:
an engine that learns a new word must not blind us. Decides which blocks count: the GPU's, of full attention.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

MAX_TOKEN: Final = 2**63 - 1
BlockHash = int | bytes  # the engine's own; ints are 64 bits wide

# Where a block must be for a prompt to find it at once; an offloaded copy (CPU, STORAGE) has events of its own.
_MEDIA = (None, "GPU")
# Only these groups hold a block of every prefix; a hybrid model's windows and states come and go beside them.
_SPECS = (None, "full_attention", "mla_attention", "sink_full_attention")
# The array form's order; fields are only ever added at the end.
_STORED = ("block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium", "lora_name", "extra_keys",
           "group_idx", "kv_cache_spec_kind")  # fmt: skip
_REMOVED = ("block_hashes", "medium", "group_idx")


class UnreadableError(ValueError):
    """Not a batch of events."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Blocks that are full now, in prefix order; `tokens` are theirs, `parent` the block before them."""

    hashes: tuple[BlockHash, ...]
    parent: BlockHash | None
    tokens: Sequence[int]
    block_size: int  # tokens
    seeds: tuple[bytes, ...]  # a block: what but tokens tells it apart (adapter, image, salt); b"" for nothing
    group: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Removed:
    """Blocks that were evicted."""

    hashes: tuple[BlockHash, ...]
    group: int | None = None


@dataclass(frozen=True, slots=True)
class Cleared:
    """The whole cache is empty."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """Known to be of no concern, or not known at all."""


Event = Stored | Removed | Cleared | Ignored


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What one engine step did to the cache. `ts`: the engine's wall clock, in seconds."""

    ts: float
    rank: int  # data parallel; each rank has a cache, a publisher and sequence numbers of its own
    events: tuple[Event, ...]


def read_batch(payload: bytes) -> Batch:
    """Raises UnreadableError where the frame is none; an event that makes no sense is Ignored."""
    try:
        whole = msgspec.msgpack.decode(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise UnreadableError("no msgpack") from error
    if not isinstance(whole, list) or len(whole) < 2 or not isinstance(whole[1], list):
        raise UnreadableError("no batch of KV events")
    ts, rank = whole[0], whole[2] if len(whole) > 2 else None
    if type(ts) is not float and type(ts) is not int:
        raise UnreadableError("a batch without its time")
    return Batch(ts=float(ts), rank=rank if type(rank) is int else 0, events=tuple(map(_event, whole[1])))


def _event(raw: object) -> Event:
    name, fields = _named(raw)
    if name == "AllBlocksCleared":
        return Cleared()
    if name not in ("BlockStored", "BlockRemoved") or fields.get("medium") not in _MEDIA:
        return Ignored()
    hashes = fields.get("block_hashes")
    if not isinstance(hashes, list) or not all(type(h) is int or type(h) is bytes for h in hashes):
        return Ignored()
    group = fields.get("group_idx")
    group = group if type(group) is int else None
    if name == "BlockRemoved":
        return Removed(hashes=tuple(hashes), group=group)
    return _stored(fields, tuple(hashes), group)


def _named(raw: object) -> tuple[object, Mapping[str, Any]]:
    if isinstance(raw, dict):
        return raw.get("type"), raw
    if isinstance(raw, list) and raw:
        order = _STORED if raw[0] == "BlockStored" else _REMOVED
        return raw[0], dict(zip(order, raw[1:], strict=False))
    return None, {}


def _stored(fields: Mapping[str, Any], hashes: tuple[BlockHash, ...], group: int | None) -> Stored | Ignored:
    tokens, size, parent = fields.get("token_ids"), fields.get("block_size"), fields.get("parent_block_hash")
    if fields.get("kv_cache_spec_kind") not in _SPECS or type(size) is not int or size < 1:
        return Ignored()
    if not isinstance(tokens, list) or not set(map(type, tokens)) <= {int} or max(tokens, default=0) > MAX_TOKEN:
        return Ignored()
    if parent is not None and type(parent) is not int and type(parent) is not bytes:
        return Ignored()
    return Stored(
        hashes=hashes, parent=parent, tokens=tokens, block_size=size,
        seeds=tuple(_seeds(fields, len(hashes))), group=group,
    )  # fmt: skip


def _seeds(fields: Mapping[str, Any], blocks: int) -> Iterator[bytes]:
    """The adapter's name comes first in every block's keys; it is taken from its own field, which older engines have, too."""
    adapter = fields.get("lora_name")
    keys = fields.get("extra_keys")
    extras: Sequence[Any] = keys if isinstance(keys, list) and len(keys) == blocks else [None] * blocks
    for extra in extras:
        others = extra if isinstance(extra, list) else []
        if adapter is not None and others[:1] == [adapter]:
            others = others[1:]
        yield seed(adapter if isinstance(adapter, str) else None, others)


def seed(adapter: str | None, others: Sequence[object] = ()) -> bytes:
    """What but its tokens identifies a block, as bytes; b"" for a plain prompt of the base model."""
    if adapter is None and not others:
        return b""
    return repr((adapter, tuple(map(repr, others)))).encode()
