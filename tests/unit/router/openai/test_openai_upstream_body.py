"""What goes to the engine: the client's bytes, less the risky members, plus the wish for usage."""

import json
from typing import Any

import pytest

from router.openai.body import parse_object
from router.openai.request import RISKY_FIELDS, read_chat, stripped_fields, upstream_body


def sent(raw: str, *, trusted: bool = False, priority_ok: bool = False) -> bytes:
    body = parse_object(raw.encode(), max_depth=64)
    return upstream_body(body, read_chat(body), trusted=trusted, priority_ok=priority_ok)


def chat(**fields: Any) -> str:
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], **fields})


def test_a_harmless_body_goes_on_as_it_came() -> None:
    """Not a byte changes: spaces, unknown members and numbers included."""
    raw = '{ "model" : "m","messages":[ {"role":"user","content":"x"} ],\n "temperature": 1.0, "top_k": 1e1, "service_tier":"flex"}'
    assert sent(raw) == raw.encode()


def test_compat_10_usage_is_asked_for_on_streams() -> None:
    """The gateway accounts by the engine's own count, so it asks where the client did not."""
    assert json.loads(sent(chat(stream=True)))["stream_options"] == {"include_usage": True}
    assert json.loads(sent(chat(stream=True, stream_options=None)))["stream_options"] == {"include_usage": True}
    assert "stream_options" not in json.loads(sent(chat(stream=False)))


def test_the_clients_stream_options_are_kept() -> None:
    """Only include_usage changes, also inside of the options."""
    raw = chat(stream=True)[:-1] + ', "stream_options": {"chunk": 1.0,  "include_usage": false, "x": [1 ,2]}}'
    assert b'"stream_options": {"chunk": 1.0,"include_usage": true,"x": [1 ,2]}' in sent(raw)
    asked = chat(stream=True, stream_options={"include_usage": True, "include_obfuscation": False})
    assert sent(asked) == asked.encode()


@pytest.mark.parametrize("field", sorted(RISKY_FIELDS))
def test_risky_fields_are_for_the_trusted(field: str) -> None:
    """Strangers may not steer caches, transfers, templates or loaders of an engine."""
    raw = chat(**{field: {"a": 1}}, after=1)
    assert json.loads(sent(raw)) == {k: v for k, v in json.loads(raw).items() if k != field}
    assert sent(raw, trusted=True) == raw.encode()


@pytest.mark.parametrize(("trusted", "priority_ok", "kept"), [(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 1)])
def test_priority_needs_trust_and_an_engine_that_takes_it(trusted: int, priority_ok: int, kept: int) -> None:
    """An engine without priority scheduling refuses the request for it; a stranger would jump every queue."""
    out = sent(chat(priority=-5), trusted=bool(trusted), priority_ok=bool(priority_ok))
    assert ("priority" in json.loads(out)) == bool(kept)


def test_stripped_fields_are_told() -> None:
    """A backend that reads parsed fields must leave out the same ones."""
    body = parse_object(chat(cache_salt="s", priority=1, top_k=3).encode(), max_depth=64)
    assert stripped_fields(body, trusted=False, priority_ok=True) == {"cache_salt", "priority"}
    assert stripped_fields(body, trusted=True, priority_ok=True) == frozenset()
