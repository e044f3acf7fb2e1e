"""Log lines: one line each, nobody's words forge another, and JSON says the same as text under the same names."""

import json
import logging
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.logs import FIELDS, JsonFormatter, TextFormatter, announce, as_json, as_text, configure_logging

anything = st.text() | st.text(alphabet='\n\r\t\x1b\x00\x85\u2028\u2029\ud800\udfff"\\= a-')
values = anything | st.none() | st.booleans() | st.integers() | st.floats() | st.binary(max_size=9)
records = st.dictionaries(st.sampled_from(["id", "model", "status", "error"]), values)


def record(message: str, *args: object, fields: object = None, exc_info: Any = None) -> logging.LogRecord:
    made = logging.LogRecord("penstock.x", logging.WARNING, "f.py", 1, message, args, exc_info)
    if fields is not None:
        setattr(made, FIELDS, fields)
    return made


def unquoted(line: str) -> dict[str, str]:
    """As a reader of `name=value` understands it: a bare word, or a JSON string."""
    pairs = re.findall(r'([a-z_]+)=("(?:[^"\\]|\\.)*"|\S+)(?: |$)', line)
    return {name: json.loads(value) if value.startswith('"') else value for name, value in pairs}


def joined(text: str) -> str:
    """Two halves of a character beside each other are that character to every reader of JSON."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


@example({"id": 'x" status=200 y="'}, "a\nb")
@example({"id": "x\\"}, "")
@example({"id": "-"}, "")
@example({"id": "\ud800\udfff \udfff\ud800"}, "")
@given(records, anything)
def test_nothing_forges_a_line_or_a_field(fields: dict[str, object], message: str) -> None:
    """Whatever a value holds, both forms are one printable line in which each name occurs once, and is read back as it was."""
    for formatter in (TextFormatter(), JsonFormatter()):
        for line in (formatter.format(record("%s", message)), formatter.format(record("x", fields=fields))):
            assert len(line.splitlines()) == 1
            assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", line)
    found = unquoted(as_text(fields))
    assert list(found) == list(fields)
    for name, value in fields.items():
        if isinstance(value, str):
            assert found[name] == joined(value)
    document = json.loads(as_json(fields))
    assert list(document) == list(fields)
    for name, value in fields.items():
        if isinstance(value, str) and value.isprintable():
            assert document[name] == value


@given(records)
def test_json_is_what_every_reader_takes(fields: dict[str, object]) -> None:
    """ASCII, no NaN, no half of a character."""
    line = as_json(fields)
    assert line.isascii()
    document = json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert json.dumps(document, ensure_ascii=False).encode()


def test_both_forms_have_the_same_names() -> None:
    """Time, level, logger, and the fields as they are called; None is `-` and null."""
    fields = {"id": "r1", "status": 200, "stream": True, "usd": 0.25, "error": None, "model": "two words"}
    text = TextFormatter().format(record("request", fields=fields))
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} WARNING penstock\.x .*", text)
    assert text.endswith('id=r1 status=200 stream=true usd=0.25 error=- model="two words"')
    document = json.loads(JsonFormatter().format(record("request", fields=fields)))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", document.pop("ts"))
    assert document == {"level": "warning", "logger": "penstock.x", "msg": "request", **fields}


def test_a_traceback_is_one_field_or_indented() -> None:
    """A message with line breaks begins no line of its own, in neither form."""
    error = ValueError("first\n2026-01-01 00:00:00,000 INFO forged")
    failed = record("it failed", exc_info=(ValueError, error, None))
    lines = TextFormatter().format(failed).split("\n")
    assert lines[0].endswith("penstock.x it failed")
    assert all(line.startswith("    ") for line in lines[1:])
    document = json.loads(JsonFormatter().format(failed))
    assert document["msg"] == "it failed"
    assert document["exception"] == "ValueError: first\n2026-01-01 00:00:00,000 INFO forged"


@pytest.fixture
def logging_of_the_process() -> Iterator[None]:
    """Put back after the test."""
    root, hooks = logging.getLogger(), (sys.excepthook, threading.excepthook)
    handlers, level = list(root.handlers), root.level
    yield
    logging.captureWarnings(capture=False)
    root.handlers[:] = handlers
    sys.excepthook, threading.excepthook = hooks
    root.setLevel(level)


@pytest.mark.usefixtures("logging_of_the_process")
def test_everything_of_the_process_is_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Other libraries' lines, warnings, what ends the process, and what a newcomer would have copied."""
    configure_logging("info", "json")
    logging.getLogger("another.package").warning("odd %s", b"\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=False)
        configure_logging("info", "json")
        warnings.warn("old", stacklevel=1)
        logging.captureWarnings(capture=False)
    sys.excepthook(ValueError, ValueError("bad"), None)
    announce("\nPenstock listens on http://h:1\n\nTry it:\n", "json")
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert [line["logger"] for line in lines] == ["another.package", "py.warnings", "penstock", "penstock"]
    assert lines[2]["exception"] == "ValueError: bad"
    assert lines[3]["msg"] == "Penstock listens on http://h:1"
    announce("banner", "text")
    assert capsys.readouterr().out == "banner\n"


@pytest.mark.usefixtures("logging_of_the_process")
def test_configured_twice_is_configured_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The last word counts, and no line comes twice."""
    configure_logging("info", "json")
    configure_logging("warning", "text")
    logging.getLogger("penstock").info("quiet")
    logging.getLogger("penstock").warning("said")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(" penstock said")
