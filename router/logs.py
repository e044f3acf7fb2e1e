"""What a log line looks like, text or JSON, and where it goes: to standard error, whoever in this process says it.

Decides nothing about what is logged. Nobody's words can forge a line or a field: in JSON all beyond printable ASCII is escaped, in text
control characters are, and what must have several lines (a traceback) has them indented.
"""

import json
import logging
import re
import sys
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from math import isfinite
from types import TracebackType
from typing import Any, Final, Literal

log = logging.getLogger("penstock")

LogFormat = Literal["text", "json"]
Fields = Mapping[str, object]
FIELDS: Final = "fields"  # of a record, by `extra`: names and values beside the message

_NOISY: Final = ("httpx", "httpcore", "uvicorn.error", "urllib3")
# Line breaks of every kind, escape sequences of terminals, and halves of characters that no encoding has.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_BARE = re.compile(r"[!#-<>-~]+")  # printable ASCII but quote and equals sign: needs no quotes


def configure_logging(level: str, log_format: LogFormat = "text") -> None:
    """Of the process: its loggers, its warnings, and what ends its threads."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    for old in tuple(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if log_format == "json":
        logging.captureWarnings(capture=True)
        sys.excepthook = _uncaught
        threading.excepthook = _uncaught_in_thread


def announce(text: str, log_format: LogFormat) -> None:
    """What a newcomer copies, on standard output; a machine that reads our lines gets the first of them as one."""
    if log_format == "json":
        log.info("%s", text.strip().partition("\n")[0])
    else:
        print(text, flush=True)  # noqa: T201 - the one thing that is meant for standard output


class TextFormatter(logging.Formatter):
    """`2026-11-28 06:20:01,123 INFO    penstock.request id=... status=200 ...`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        fields: Fields | None = getattr(record, FIELDS, None)
        record.message = _UNSAFE.sub(_escaped, record.getMessage()) if fields is None else as_text(fields)
        record.asctime = self.formatTime(record)
        line = self.formatMessage(record)
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        return line + _indented(record.exc_text) + _indented(record.stack_info)


class JsonFormatter(logging.Formatter):
    """One object a line: ts, level, logger, msg, then what belongs to the line; `exception` holds a whole traceback."""

    def format(self, record: logging.LogRecord) -> str:
        ts = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        document: dict[str, object] = {
            "ts": ts.removesuffix("+00:00") + "Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        fields: Fields | None = getattr(record, FIELDS, None)
        if fields is not None:
            document |= fields
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            document["stack"] = record.stack_info
        return as_json(document)


def as_text(fields: Fields) -> str:
    """`name=value` with spaces between; None is `-`. Names are ours, values may be anybody's."""
    return " ".join([f"{name}={_value(value)}" for name, value in fields.items()])


def as_json(document: Fields) -> str:
    """One line of ASCII; what JSON has no form for becomes text."""
    try:
        line = json.dumps(document, default=_told, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError):  # a name that is no text, or a number that JSON does not have
        line = ""
    if line and "\\ud" not in line:
        return line
    return json.dumps(_whole(document), separators=(",", ":"))  # also for half a character, which many readers refuse


def _value(value: object) -> str:
    if type(value) is int:
        return str(value)
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    text = f"{value:.9g}" if isinstance(value, float) else _told(value)
    if _BARE.fullmatch(text) and text != "-":
        return text
    return _UNSAFE.sub(_escaped, json.dumps(text, ensure_ascii=False))  # a JSON string still


def _told(value: object) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _whole(value: object) -> Any:
    """The same without halves of characters."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_whole(str(name)): _whole(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(one) for one in value]
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and isfinite(value)):
        return value
    return _whole(_told(value))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return {10: "\\n", 13: "\\r", 9: "\\t"}.get(code) or f"\\u{code:04x}"


def _indented(text: str | None) -> str:
    """Below a line: nothing in it begins as a line of its own does."""
    if not text:
        return ""
    return "".join(f"\n    {_UNSAFE.sub(_escaped, line)}" for line in text.split("\n"))


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        log.warning("interrupted")
    else:
        log.critical("ended by an error", exc_info=(kind, error, trace))


def _uncaught_in_thread(told: threading.ExceptHookArgs) -> None:
    if told.exc_value is not None:
        log.critical("a thread ended by an error", exc_info=(told.exc_type, told.exc_value, told.exc_traceback))
