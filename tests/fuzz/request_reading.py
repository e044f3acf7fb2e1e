"""What the front door makes of a body without a socket: an engine gets what was read, or the client is told why not."""

import json

from hypothesis import strategies as st

from router.openai.body import parse_object
from router.openai.errors import ApiError
from router.openai.request import read_call, stripped_fields, upstream_body
from tests.support.fuzzing import holds_for

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
BODIES = [
    """{"model":"m","messages":[{"role":"user","content":"é"},{"role":"assistant","content":[{"type":"text","text":"a"}]}],"max_tokens":3,
    "stream":true,"stream_options":{"include_usage":true},"stop":["x"],"n":2,"priority":1,"temperature":1.0,"user":"u"}""",
    '{"model":"m","prompt":["a"],"stream":true,"stream_options":null,"logit_bias":{"1":2},"seed":1e1}',
    ' { "model" : "m" , "prompt" : [1,2,3] , "cache_salt" : "s" , "kv_transfer_params" : { } } ',
    '{"model":"m","input":["a","\\u00e9\\ud83c\\udf0a"],"dimensions":3,"encoding_format":"float"}',
]
PARTS = [
    b"null", b"true", b"-1", b"1e400", b"NaN", b"[]", b"{}", b'""', b'"\\ud800"', b"\xff", b'"n":128,', b'"max_tokens":0,', b'"model":"",', b'"stream":1,',
    b'"stream_options":{"include_usage":null},', b'"priority":9,', b'"prompt":7,', b"[" * 70, b",", b":", b"}", b"{", b"\\", b'"', b" ", b"\xc3\xa9", b"\xef\xbb\xbf",
]  # fmt: skip
SPOT = st.tuples(st.integers(0, 400), st.integers(0, 12), st.sampled_from(PARTS) | st.binary(max_size=4))


def spoiled(body: str, spots: list[tuple[int, int, bytes]]) -> bytes:
    data = body.encode()
    for place, length, new in spots:
        at = place % (len(data) + 1)
        data = data[:at] + new + data[at + length :]
    return data


@holds_for(
    raw=st.builds(spoiled, st.sampled_from(BODIES), st.lists(SPOT, max_size=3)),
    path=st.sampled_from(PATHS),
    trusted=st.booleans(),
    priority_ok=st.booleans(),
)
def the_request_reader(raw: bytes, path: str, trusted: bool, priority_ok: bool) -> None:
    """A body is refused with a status of the 400s, or what goes to the engine is JSON and says what the gateway read."""
    try:
        body = parse_object(raw, max_depth=64)
        spec = read_call(path, body)
        sent = upstream_body(body, spec, trusted=trusted, priority_ok=priority_ok)
    except ApiError as error:
        assert 400 <= error.status < 500, error  # noqa: PT017 - both ways are allowed
        return
    stripped = stripped_fields(body, trusted=trusted, priority_ok=priority_ok)
    fields = {name: value for name, value in body.fields.items() if name not in stripped}
    if spec.strip_usage:
        fields["stream_options"] = {**(fields.get("stream_options") or {}), "include_usage": True}
    assert json.loads(sent) == fields
    assert not spec.stream or not spec.strip_usage or fields["stream_options"]["include_usage"] is True
