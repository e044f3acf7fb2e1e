"""Traces from files: both published shapes, what they may say besides, and what is told about the others."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batching.request import ServiceTier
from router.simulation.trace import Call
from router.simulation.trace_files import read_trace
from tests.support.simulation_files import AZURE, MOONCAKE, written

HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
HUGE = "9" * 400


def test_azure_traces_are_recognised(tmp_path: Path):
    """A CSV's dates become seconds since its first request, its lengths tokens; an answer of none counts as one."""
    calls = read_trace(written(tmp_path, "t.csv", AZURE))
    assert calls == [
        Call(arrival_s=0.0, prompt_tokens=374, output_tokens=44),
        Call(arrival_s=4.25, prompt_tokens=396, output_tokens=1),
    ]


def test_mooncake_traces_are_recognised(tmp_path: Path):
    """JSON lines become seconds, lengths and prefix blocks, whatever the file is called."""
    calls = read_trace(written(tmp_path, "t.csv", MOONCAKE))
    assert [call.arrival_s for call in calls] == [0.0, 27.482]
    assert calls[0].prefix_blocks == (0, 1)


def test_plain_seconds_and_a_limit(tmp_path: Path):
    """Timestamps may be seconds, rows may be out of order, and a limit takes the earliest."""
    calls = read_trace(written(tmp_path, "t.csv", HEAD + "9.5,30,3\n7.5,10,1\n8.5,20,2\n"), limit=2)
    assert [(call.arrival_s, call.prompt_tokens) for call in calls] == [(0.0, 10), (1.0, 20)]


def test_equal_times_keep_the_order_of_the_file(tmp_path: Path):
    """Requests of one moment arrive as they stand."""
    calls = read_trace(written(tmp_path, "t.csv", HEAD + "5,3,1\n5,1,1\n4,9,1\n5,2,1\n"))
    assert [call.prompt_tokens for call in calls] == [9, 3, 1, 2]


def test_time_zones_count(tmp_path: Path):
    """Dates with different offsets are compared as moments; one without is UTC."""
    text = HEAD + "2024-05-10 01:00:00.5+01:00,1,1\n2024-05-10 00:00:00+00:00,2,1\n2024-05-10 00:00:01,3,1\n"
    calls = read_trace(written(tmp_path, "t.csv", text))
    assert [(call.arrival_s, call.prompt_tokens) for call in calls] == [(0.0, 2), (0.5, 1), (1.0, 3)]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf", b"\n\r\n"])
def test_marks_blank_lines_and_windows_line_ends_are_nothing(tmp_path: Path, mark: bytes):
    """A byte order mark, blank lines at the start and CRLF are read over, in both shapes."""
    for text in (AZURE, MOONCAKE):
        plain = read_trace(written(tmp_path, "plain", text))
        assert read_trace(written(tmp_path, "other", mark + text.replace("\n", "\r\n").encode())) == plain


def test_more_columns_say_more(tmp_path: Path):
    """Both shapes may name tenant, service tier and longest wait; empty says nothing; whole numbers may be written 12.0."""
    csv = "TIMESTAMP,ContextTokens,GeneratedTokens,tenant,service_tier,max_wait_s\n0,12.0,1,a,Priority,2.5\n1,1,1,,,\n"
    jsonl = '{"timestamp": 0, "input_length": 12, "output_length": 1, "tenant": "a", "service_tier": "priority", "max_wait_s": 2.5}\n'
    jsonl += '{"timestamp": 1000, "input_length": 1, "output_length": 1, "tenant": null, "hash_ids": null}\n'
    expected = [
        Call(
            arrival_s=0.0,
            prompt_tokens=12,
            output_tokens=1,
            tenant="a",
            service_tier=ServiceTier.PRIORITY,
            max_wait_s=2.5,
        ),
        Call(arrival_s=1.0, prompt_tokens=1, output_tokens=1),
    ]
    assert read_trace(written(tmp_path, "t.csv", csv)) == expected
    assert read_trace(written(tmp_path, "t.jsonl", jsonl)) == expected


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"", "t: no requests"),
        (b"\n \n", "t: no requests"),
        (HEAD, "t: no requests"),
        (b"\xff\xfe\x00", "t:1: not UTF-8 text"),
        (HEAD.encode() + b"1,1,1\n\xe9,1,1\n", "t:3: not UTF-8 text"),
        ("a,b\n1,2\n", "t:1: neither JSON lines nor a CSV without the columns TIMESTAMP, ContextTokens, GeneratedTokens"),
        ("TIMESTAMP,ContextTokens\n1,2\n", "t:1: neither JSON lines nor a CSV without the columns GeneratedTokens"),
        ("\n\na,b\n1,2\n", "t:3: neither"),
        (HEAD + "1,1,1\n2,-1,1\n", "t:3: ContextTokens '-1' is not a number of tokens"),
        (HEAD + "1,1\n", "t:2: GeneratedTokens None is not a number"),
        (HEAD + "1,1.5,1\n", "t:2: ContextTokens '1.5' is not a number of tokens"),
        (HEAD + f"1,{HUGE},1\n", "t:2: ContextTokens '99999"),
        (HEAD + "1,1,many\n", "t:2: GeneratedTokens 'many' is not a number"),
        (HEAD + "yesterday,1,1\n", "t:2: TIMESTAMP 'yesterday' is neither a date nor a number"),
        (HEAD + "nan,1,1\n", "t:2: TIMESTAMP 'nan' is neither"),
        (HEAD + "0,1,1\n2023-11-16 18:15:46,1,1\n", "t: its timestamps are 8,721 days apart; is one of them wrong?"),
        (HEAD + f'0,"{"x" * 200_000}",1\n', "t:2: not CSV"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens,service_tier\n1,1,1,gold\n", "t:2: service_tier 'gold' is none of priority"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens,max_wait_s\n1,1,1,0\n", "t:2: max_wait_s '0' is not a time to wait"),
        ('{"timestamp": 0}\n', "t:1: lacks input_length, output_length"),
        (MOONCAKE + '{"timestamp": 0, \n', "t:3: not JSON"),
        (MOONCAKE + "[1]\n", "t:3: a JSON list, not an object"),
        (MOONCAKE + "[" * 100_000, "t:3: not JSON"),
        (MOONCAKE.replace("27482", "NaN"), "t:2: timestamp nan is not a finite number"),
        (MOONCAKE.replace("27482", HUGE), "t:2: timestamp 99999"),
        (MOONCAKE.replace("27482", "true"), "t:2: timestamp True is not a number"),
        (MOONCAKE.replace("1024", HUGE), "t:1: input_length 99999"),
        (MOONCAKE.replace("1024", "-5"), "t:1: input_length -5 is not a number of tokens"),
        (MOONCAKE.replace("[0, 1]", '["a"]'), "t:1: hash_ids ['a'] is not a list of whole numbers"),
    ],
)  # fmt: skip
def test_what_is_no_trace_is_told_in_one_line(tmp_path: Path, text: str | bytes, told: str):
    """The error names the file, the line in it and what is wrong there, and is short."""
    with pytest.raises(ValueError) as refused:
        read_trace(written(tmp_path, "t", text))
    message = str(refused.value)
    assert message.startswith(told)
    assert "\n" not in message
    assert len(message) < 300


@settings(max_examples=200)
@given(st.binary(max_size=200), st.sampled_from([b"", HEAD.encode(), b'{"timestamp": 0, ', MOONCAKE.encode()]))
def test_any_bytes_are_a_trace_or_a_value_error(tmp_path_factory: pytest.TempPathFactory, tail: bytes, head: bytes):
    """Whatever a file holds: requests in order with lengths of at least 1, or a ValueError that begins with its name."""
    path = written(tmp_path_factory.getbasetemp(), "any", head + tail)
    try:
        calls = read_trace(path)
    except ValueError as error:
        assert str(error).startswith("any")  # noqa: PT017 - either is right
    else:
        assert calls[0].arrival_s == 0
        assert calls == sorted(calls, key=lambda call: call.arrival_s)
        assert all(call.prompt_tokens >= 1 and call.output_tokens >= 1 for call in calls)
