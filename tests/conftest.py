"""What holds for all tests: an example may take as long as a busy machine makes it take, and the examples are the same each time."""

import signal
import tracemalloc  # noqa: F401 - see below
from typing import Any

import pytest
from hypothesis import settings

pytest_plugins = ["pytester"]

# pytest imports tracemalloc where it is told of an object that ended badly, which may be inside a collection inside an import of
# somebody else's: until 3.12 that import then fails with a KeyError (CPython's gh-91351). What is loaded already is not imported there.

# What has failed or not must not be a matter of luck, nor of how much a machine gets done: `make bars` looks for other examples.
settings.register_profile("penstock", deadline=None, derandomize=True)
settings.register_profile("others", deadline=None)
settings.load_profile("penstock")


def pytest_configure() -> None:
    """In the background of a shell SIGINT is ignored, and would be by every command that a test starts and interrupts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Any:
    """What a test says of its failure can be sent to the process that prints it, though it has halves of characters in it."""
    return encodable((yield))


def encodable(data: Any) -> Any:
    """The same with everything escaped that UTF-8 has no bytes for."""
    if isinstance(data, str):
        return data.encode("utf-8", "backslashreplace").decode()
    if isinstance(data, dict):
        return {encodable(name): encodable(value) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(map(encodable, data))
    return data
