"""OTLP's protobuf, written by hand: a batch of finished traces as the bytes of one export. Pure.

The generated classes take four times as long (`python -m benchmarks.telling`), in a thread that shares the interpreter with the loop;
that they read what is written here is what the tests check. Numbers are of opentelemetry-proto's trace.proto and common.proto, 1.x.
"""

from collections.abc import Iterable, Mapping
from functools import lru_cache
from struct import pack
from typing import Final

from router.tracing.spans import CLIENT, INTERNAL, SERVER, Event, Link, Span, Value
from router.tracing.tracer import Finished

_KINDS: Final = {INTERNAL: b"\x30\x01", SERVER: b"\x30\x02", CLIENT: b"\x30\x03"}
_ERROR: Final = b"\x18\x02"  # Status.code
_OURS = pack("<BBI", 0x85, 0x01, 0x101)  # Span.flags: sampled, and whether the parent is remote is known: it is not
_THEIRS = pack("<BBI", 0x85, 0x01, 0x301)  # ... it is
_LINKED = pack("<BI", 0x35, 0x101)


def request(finished: Iterable[Finished], resource: Mapping[str, Value], scope: tuple[str, str]) -> bytes:
    """An ExportTraceServiceRequest. `scope`: the library's name and version."""
    spans = b"".join([_field(0x12, _span(one, span)) for one in finished for span in one.spans])
    told = _text(0x0A, scope[0]) + _text(0x12, scope[1])
    about = _attributes(0x0A, resource)
    return _field(0x0A, _field(0x0A, about) + _field(0x12, _field(0x0A, told) + spans))


def _span(finished: Finished, span: Span) -> bytes:
    zero_ns = finished.zero_ns
    start_ns = zero_ns + round(span.start_s * 1e9)
    end_ns = max(start_ns, zero_ns + round(span.end_s * 1e9))
    trace_id = finished.trace_id.to_bytes(16, "big")
    parts = [b"\x0a\x10", trace_id, b"\x12\x08", span.span_id.to_bytes(8, "big")]
    if finished.state:
        parts.append(_text(0x1A, finished.state))
    if span.parent_id is not None:
        parts += b"\x22\x08", span.parent_id.to_bytes(8, "big")
    parts += _text(0x2A, span.name), _KINDS[span.kind], pack("<BQBQ", 0x39, start_ns, 0x41, end_ns)
    parts.append(_attributes(0x4A, span.attributes))
    parts += [_field(0x5A, _event(event, zero_ns)) for event in span.events]
    parts += [_field(0x6A, _link(link, trace_id)) for link in span.links]
    if span.failed is not None:
        parts.append(_field(0x7A, _text(0x12, span.failed) + _ERROR))
    parts.append(_THEIRS if finished.remote_parent and span is finished.spans[0] else _OURS)
    return b"".join(parts)


def _event(event: Event, zero_ns: int) -> bytes:
    at = pack("<BQ", 0x09, zero_ns + round(event.at_s * 1e9))
    return at + _text(0x12, event.name) + _attributes(0x1A, event.attributes)


def _link(link: Link, trace_id: bytes) -> bytes:
    ids = b"\x0a\x10" + trace_id + b"\x12\x08" + link.span_id.to_bytes(8, "big")
    return ids + _attributes(0x22, link.attributes) + _LINKED


def _attributes(tag: int, attributes: Mapping[str, Value]) -> bytes:
    parts: list[bytes] = []
    for name, value in attributes.items():
        key = _key(name)
        if type(value) is str and (size := len(data := value.encode("utf-8", "replace"))) < 60 and len(key) < 60:
            # Most are short texts: all four lengths at once.
            parts.append(b"%c%c%b\x12%c\x0a%c%b" % (tag, len(key) + size + 4, key, size + 2, size, data))
        else:
            parts.append(_field(tag, key + _field(0x12, _value(value))))
    return b"".join(parts)


def _value(value: Value) -> bytes:
    """An AnyValue."""
    if isinstance(value, str):
        return _text(0x0A, value)
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int):
        return b"\x18" + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)
    if isinstance(value, float):
        return pack("<Bd", 0x21, value)
    return _field(0x2A, b"".join([_field(0x0A, _value(one)) for one in value]))


@lru_cache(maxsize=256)
def _key(name: str) -> bytes:
    """Names are ours, and few."""
    return _text(0x0A, name)


def _text(tag: int, text: str) -> bytes:
    return _field(tag, text.encode("utf-8", "replace"))  # half of a character is none


def _field(tag: int, data: bytes) -> bytes:
    """Length-delimited; `tag` is below 128."""
    size = len(data)
    if size < 128:
        return bytes((tag, size)) + data
    return bytes((tag,)) + _varint(size) + data


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
