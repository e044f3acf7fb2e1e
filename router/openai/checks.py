"""Small checks of OpenAI request fields: the value, or an ApiError that names the field and says what to send.

Every field here is optional on the wire, and null means absent, as OpenAI and vLLM read it. Fields that no check names are the
engine's business and pass untouched.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from router.openai.errors import ApiError, invalid_request

# JSON integers beyond it are no count of anything; engines store them in 32 bits.
MAX_INT: Final = 2**31 - 1


def wrong(param: str, expected: str, value: object) -> ApiError:
    """The usual complaint."""
    return invalid_request(f"`{param}` must be {expected}, not {_kind(value)}.", param=param, code="invalid_type")


def out_of_range(param: str, expected: str) -> ApiError:
    return invalid_request(f"`{param}` must be {expected}.", param=param, code="invalid_value")


def boolean(fields: Mapping[str, Any], name: str) -> bool | None:
    value = fields.get(name)
    if value is None or type(value) is bool:
        return value
    raise wrong(name, "true or false", value)


def integer(fields: Mapping[str, Any], name: str, low: int, high: int = MAX_INT) -> int | None:
    """No bool, no float: `true` and `1.0` are mistakes of the client that an engine may read as 1."""
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not int:
        raise wrong(name, "an integer", value)
    if not low <= value <= high:
        raise out_of_range(name, f"from {low} to {high}")
    return value


def number(fields: Mapping[str, Any], name: str, low: float, high: float) -> None:
    value = fields.get(name)
    if value is None:
        return
    if type(value) not in (int, float):
        raise wrong(name, "a number", value)
    if not low <= value <= high:
        raise out_of_range(name, f"from {low:g} to {high:g}")


def string(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is None or type(value) is str:
        return value
    raise wrong(name, "a string", value)


def one_of(fields: Mapping[str, Any], name: str, allowed: Sequence[str]) -> str | None:
    value = string(fields, name)
    if value is not None and value not in allowed:
        raise out_of_range(name, "one of " + ", ".join(f"`{a}`" for a in allowed))
    return value


def mapping(fields: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    value = fields.get(name)
    if value is None or type(value) is dict:
        return value
    raise wrong(name, "an object", value)


def objects(fields: Mapping[str, Any], name: str, limit: int) -> list[dict[str, Any]] | None:
    """A list of objects, or null."""
    value = fields.get(name)
    if value is None:
        return None
    if type(value) is not list:
        raise wrong(name, "a list of objects", value)
    if len(value) > limit:
        raise out_of_range(name, f"at most {limit} items long")
    for position, item in enumerate(value):
        if type(item) is not dict:
            raise wrong(f"{name}[{position}]", "an object", item)
    return value


def stop(fields: Mapping[str, Any], limit: int) -> None:
    """A string or a list of strings."""
    value = fields.get("stop")
    if value is None or type(value) is str:
        return
    if type(value) is not list or any(type(item) is not str for item in value):
        raise wrong("stop", "a string or a list of strings", value)
    if len(value) > limit:
        raise out_of_range("stop", f"at most {limit} strings")


def metadata(fields: Mapping[str, Any]) -> None:
    """OpenAI's own bounds: 16 pairs, keys of 64 and values of 512 characters."""
    pairs = mapping(fields, "metadata")
    if not pairs:
        return
    if len(pairs) > 16:
        raise out_of_range("metadata", "at most 16 pairs")
    for key, value in pairs.items():
        if type(value) is not str:
            raise wrong("metadata", "an object of strings", value)
        if len(key) > 64 or len(value) > 512:
            raise out_of_range("metadata", "made of keys of at most 64 and values of at most 512 characters")


def _kind(value: object) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), "that")
