"""Validation errors as lines for people: the key path first, then what is wrong, then what to change.

Decides wording only. Values that may be secrets are never shown.
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from reprlib import Repr
from typing import get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from config.checks import REFUSED
from config.schema import Config

KeyPath = tuple[str | int, ...]

SECRET_KEYS = frozenset({"api_key", "admin_key", "pepper", "secret_keys", "password"})
SECRET_HEADERS = ("tracing", "headers")  # each value below it

_BOUNDS = {
    "greater_than": "{value} is too small; give more than {gt:g}",
    "greater_than_equal": "{value} is too small; give {ge:g} or more",
    "less_than": "{value} is too large; give less than {lt:g}",
    "less_than_equal": "{value} is too large; give {le:g} or less",
}
_KINDS = {
    "int": "is not a whole number",
    "float": "is not a number",
    "finite": "is not a finite number",
    "bool": "is not true or false",
    "string": "is not text; put it in quotes",
    "tuple": "is not a list; begin each item with `- `",
    "model": "is not a section; write its keys below it, indented",
    "dict": "is not a mapping; write its keys below it, indented",
}


class ConfigError(Exception):
    """The configuration can't be used; every problem is one line."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def explain(error: ValidationError, origins: Mapping[KeyPath, str]) -> list[str]:
    """A line for each error; `origins` says where a value came from, if not from the file."""
    return [_line(details, origins) for details in error.errors(include_url=False)]


def dotted(path: KeyPath) -> str:
    """`replicas[0].cost.tier`."""
    text = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return text.removeprefix(".") or "configuration"


def nested_section(annotation: object) -> type[BaseModel] | None:
    """The section that a field's type is, or has items of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for arg in get_args(annotation) if (found := nested_section(arg)) is not None), None)


def _line(details: ErrorDetails, origins: Mapping[KeyPath, str]) -> str:
    path = details["loc"]
    origin = next((origins[path[:n]] for n in range(len(path), 0, -1) if path[:n] in origins), None)
    come_from = f" (from {origin})" if origin else ""
    if details["type"] == "invalid_key" or path[-1:] == ("[key]",):
        where = path[:-1] if details["type"] == "invalid_key" else path[:-2]
        return f"{dotted(where)}: the key {_shown(details['input'])} is not text; put it in quotes{come_from}"
    return f"{dotted(path)}: {_wrong(details)}{come_from}"


def _wrong(details: ErrorDetails) -> str:
    kind, path, given = details["type"], details["loc"], details["input"]
    if kind == REFUSED:
        return details["msg"]
    if kind == "missing":
        return "missing; add it"
    if kind == "extra_forbidden":
        return f"unknown key; {_suggestion(path)}"
    secret = path[:2] == SECRET_HEADERS or (path[-1:] and path[-1] in SECRET_KEYS)
    value = "the value" if secret else _shown(given)
    if given is None or kind == "string_too_short":
        return "empty; give it a value or remove the line"
    if kind in {"enum", "literal_error"}:
        choices = re.findall(r"'([^']*)'", details["ctx"]["expected"])
        return f"{value} is not one of {', '.join(choices)}"
    if kind in _BOUNDS:
        return _BOUNDS[kind].format(value=value, **details["ctx"])
    if kind == "string_pattern_mismatch":
        return f"{value} has a wrong form; it must match {details['ctx']['pattern']}"
    said = _KINDS.get(kind.split("_", 1)[0])
    return f"{value} {said}" if said else f"{value}: {details['msg'][:1].lower()}{details['msg'][1:]}"


def _shown(value: object) -> str:
    """Short, however large the value: aliases make a small file a huge value."""
    short = Repr()
    short.maxstring = short.maxother = 80
    short.maxlevel = 2
    return short.repr(value)


def _suggestion(path: KeyPath) -> str:
    *parents, last = path
    key, section = str(last), _section_at(parents)
    if section is None:
        return "remove it"
    prefix = tuple(parents)
    below = _path_to(key, section) or ()  # its very name, elsewhere, is likelier than a similar one
    if not below:
        near = get_close_matches(key.lower().replace("-", "_"), section.model_fields, n=1)
        if near:
            return f"did you mean `{near[0]}`?"
        prefix, below = (), _path_to(key, Config) or ()
    if below:
        return f"did you mean `{dotted((*prefix, *below))}`?"
    return f"known here: {', '.join(section.model_fields)}"


def _section_at(path: Sequence[str | int]) -> type[BaseModel] | None:
    section: type[BaseModel] | None = Config
    for step in path:
        if isinstance(step, str) and section is not None:
            field = section.model_fields.get(step)
            section = None if field is None else nested_section(field.annotation)
    return section


def _path_to(key: str, section: type[BaseModel]) -> KeyPath | None:
    """Where below `section`, lists aside, a key of this name is; the shallowest."""
    if key in section.model_fields:
        return (key,)
    found = [
        (name, *below)
        for name, field in section.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        if (below := _path_to(key, field.annotation)) is not None
    ]
    return min(found, key=len, default=None)
