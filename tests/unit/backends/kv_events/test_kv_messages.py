"""Reading vLLM's KV events: what an engine sent, what older and newer ones send, and what nobody should."""

from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.kv_events.messages import Batch, Cleared, Ignored, Removed, Stored, UnreadableError, read_batch, seed
from tests.support.kv_publisher import cleared, packed, removed, stored

# Captured from vLLM 0.32.
CAPTURED: list[Any] = [
    1795474656.4879932,
    [{
        "type": "BlockStored", "block_hashes": [5647439330247504730], "parent_block_hash": 8314524420218427086,
        "token_ids": [321, 493, 273, 544, 513, 268, 452, 312, 374, 301, 266, 352, 17, 224, 132, 236, 56, 415, 614, 53, 617,
                      126, 375, 386, 35, 577, 73, 354, 329, 560, 450, 39],
        "block_size": 32, "lora_id": None, "medium": "GPU", "lora_name": None, "extra_keys": [None], "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }],
    0,
]  # fmt: skip


def events(*raw: Any) -> tuple[Any, ...]:
    return read_batch(packed(raw)).events


def one(raw: Any) -> Any:
    (event,) = events(raw)
    return event


def test_a_captured_batch() -> None:
    """What a real engine sent is read whole."""
    batch = read_batch(msgspec.msgpack.encode(CAPTURED))
    (event,) = batch.events
    assert (batch.ts, batch.rank) == (1795474656.4879932, 0)
    assert (event.hashes, event.parent, event.block_size) == ((5647439330247504730,), 8314524420218427086, 32)
    assert (len(event.tokens), event.seeds, event.group) == (32, (b"",), 0)


def test_each_type() -> None:
    """Stored, removed and cleared, in the order of the batch."""
    found = events(stored([1], [5, 6, 7, 8]), removed(1, 2, group_idx=3), cleared())
    assert isinstance(found[0], Stored)
    assert found[1:] == (Removed(hashes=(1, 2), group=3), Cleared())


def test_hashes_may_be_bytes() -> None:
    """Engines with VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES=0 send whole digests."""
    event = one(stored([b"\xff" * 32], [1, 2, 3, 4], parent=b"\x00" * 32))
    assert (event.hashes, event.parent) == ((b"\xff" * 32,), b"\x00" * 32)


def test_the_array_form_of_older_engines() -> None:
    """Before events were maps they were arrays with their name first."""
    assert one(["BlockStored", [1], None, [5, 6], 2, None]) == one(stored([1], [5, 6], block_size=2))
    assert one(["BlockRemoved", [1]]) == Removed(hashes=(1,))
    assert one(["AllBlocksCleared"]) == Cleared()


@pytest.mark.parametrize(
    "raw",
    [
        stored([1], [5, 6, 7, 8], medium="CPU"),
        removed(1, medium="STORAGE"),
        stored([1], [5, 6, 7, 8], kv_cache_spec_kind="sliding_window"),
        stored([1], [5, 6, 7, 8], kv_cache_spec_kind="mamba"),
        stored([1], [5, 6, 7, 8], block_size=0),
        stored([1], [5, "6"]),
        stored([1], [2**64 - 1] * 4),
        stored([1.5], [5]),
        stored([1], [5, 6, 7, 8], parent="root"),
        {"type": "BlockPromoted", "block_hashes": [1]},
        {"type": "BlockStored"},
        {"no": "type"},
        ["BlockStored"],
        [],
        7,
    ],
)
def test_what_is_ignored(raw: Any) -> None:
    """Other media, other attention, other types and nonsense are passed over, one by one."""
    assert events(raw, cleared()) == (Ignored(), Cleared())


def test_newer_batches_may_have_more() -> None:
    """Items and fields that are not known here change nothing."""
    known = stored([1], [5, 6, 7, 8])
    newer = msgspec.msgpack.encode([1.0, [{**known, "temperature": "hot"}], 2, "more", {}])
    batch = read_batch(newer)
    assert (batch.rank, batch.events) == (2, read_batch(packed([known])).events)


def test_a_batch_without_a_rank_is_rank_0() -> None:
    """Engines without data parallelism may leave it out."""
    assert read_batch(msgspec.msgpack.encode([3, []])) == Batch(ts=3.0, rank=0, events=())


@pytest.mark.parametrize("payload", [b"", b"\xc1", msgspec.msgpack.encode({"ts": 1}), msgspec.msgpack.encode([1.0]),
                                     msgspec.msgpack.encode(["now", []]), msgspec.msgpack.encode([1.0, {}])])  # fmt: skip
def test_no_batch(payload: bytes) -> None:
    """What is no batch says so instead of passing for an empty one."""
    with pytest.raises(UnreadableError):
        read_batch(payload)


@given(st.binary(max_size=200))
def test_any_bytes(payload: bytes) -> None:
    """A frame is read or refused, whatever is in it."""
    with suppress(UnreadableError):
        assert isinstance(read_batch(payload), Batch)


_JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


_FIELDS = (
    "block_hashes",
    "parent_block_hash",
    "token_ids",
    "block_size",
    "medium",
    "extra_keys",
    "group_idx",
    "lora_name",
)
_NAMES = st.sampled_from(["BlockStored", "BlockRemoved", "AllBlocksCleared"])


@given(st.fixed_dictionaries({"type": _NAMES}, optional=dict.fromkeys(_FIELDS, _JSON)) | _JSON)
def test_any_fields(raw: Any) -> None:
    """An event with any values in known fields is an event or Ignored."""
    assert len(events(raw)) == 1


def test_what_tells_blocks_apart_besides_tokens() -> None:
    """Adapter, image and salt make another block; the adapter alone is what a prompt of it has, in old engines and new."""
    tokens = [1, 2, 3, 4]
    plain = one(stored([1], tokens, extra_keys=[None])).seeds
    adapter = one(stored([1], tokens, lora_name="law", extra_keys=[["law"]])).seeds
    older = one(stored([1], tokens, lora_name="law")).seeds
    image = one(stored([1], tokens, extra_keys=[[["img-1", 3]]])).seeds
    salted = one(stored([1], tokens, extra_keys=[["law"]])).seeds
    assert plain == (b"",)
    assert adapter == older == (seed("law"),)
    assert len({plain, adapter, image, salted}) == 4
