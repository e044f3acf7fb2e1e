"""What a failing test says reaches the process that prints it, whatever is in it."""

from pathlib import Path

import pytest

from tests import conftest
from tests.conftest import encodable


def test_halves_of_characters_are_escaped() -> None:
    """Everywhere in a report; all else stays what it is."""
    report = {"a\ud800": ["\udfff b", ("é😀", 1, None, 0.5)], "c": {"d": True}}
    assert encodable(report) == {"a\\ud800": ["\\udfff b", ("é😀", 1, None, 0.5)], "c": {"d": True}}


def test_a_failure_in_another_process_is_told(pytester: pytest.Pytester) -> None:
    """A value without bytes in UTF-8 fails its test, not the run."""
    pytester.makeconftest(Path(conftest.__file__).read_text())
    pytester.makepyfile(r"""
        def test_a(): assert "\ud800" == ""
        def test_b(): pass
    """)
    pytester.runpytest_subprocess("-n", "1").assert_outcomes(passed=1, failed=1)
