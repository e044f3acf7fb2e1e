"""`make test` runs every folder of tests once, and its last line and exit status tell of all parts."""

from pathlib import Path

import pytest

from tests import run
from tests.run import ALL_CORES, NOTHING_SELECTED, PROCESSES, REAL, TWO, VIRTUAL, Part

TESTS = Path(__file__).resolve().parents[2]
ONLY_BARS = {"bars"}
REPORT = """<testsuites><testsuite>
<testcase classname="tests.a.test_x" name="test_good[1]" file="tests/a/test_x.py" time="0.1" />
<testcase classname="tests.a.test_x" name="test_bad[é]" file="tests/a/test_x.py"><failure message="no">...</failure></testcase>
<testcase classname="tests.a.test_x" name="test_bad[é]" file="tests/a/test_x.py"><error message="at its end">...</error></testcase>
<testcase classname="tests.a.test_y" name="test_none" file="tests/a/test_y.py"><error message="no fixture">...</error></testcase>
</testsuite></testsuites>"""


def part(name: str = "p", *, status: int = 0, tests: int = 3, failed: tuple[str, ...] = ()) -> Part:
    return Part(name, status, 61.4, tests, failed)


NOTHING = part(status=NOTHING_SELECTED, tests=0)


def test_every_folder_is_in_one_part() -> None:
    """A new folder of tests is run, and none twice."""
    folders = [path.name for path in TESTS.iterdir() if any(path.rglob("test_*.py"))]
    assert sorted([*VIRTUAL, *PROCESSES, *REAL, *ONLY_BARS]) == sorted(folders)


def test_a_report_names_what_failed_once(tmp_path: Path) -> None:
    """As pytest is asked for it alone; a test that failed and then failed to end is one."""
    report = tmp_path / "report.xml"
    report.write_text(REPORT)
    assert run.read(report) == (3, ["tests/a/test_x.py::test_bad[é]", "tests/a/test_y.py::test_none"])


@pytest.mark.parametrize(
    ("ended", "said"),
    [
        (part(), "p: 3 of 3 passed in 1:01"),
        (part(status=NOTHING_SELECTED, tests=0), "p: 0 of 0 passed in 1:01"),
        (part(status=1, failed=("a::b", "a::c")), "p: 1 of 3 passed in 1:01; FAILED: a::b a::c"),
        (part(status=3), "p: 3 of 3 passed in 1:01; FAILED: none, but pytest ended with status 3"),
    ],
)
def test_a_part_says_how_it_ended(ended: Part, said: str) -> None:
    """A pytest that broke down is a failure, though no test is."""
    assert str(ended) == said
    assert ended.good == ("FAILED" not in said)


def test_many_failures_are_counted() -> None:
    """The last line stays a line."""
    said = str(part(status=1, tests=100, failed=tuple(f"t{n}" for n in range(50))))
    assert said.endswith(" t19 and 30 more")


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([part(), part(), part()], 0),
        ([part(status=1, failed=("v",)), part(), part()], 1),
        ([part(), part(status=1, failed=("p",)), part()], 1),
        ([part(), part(), part(status=1, failed=("r",))], 1),
        ([part(), part(status=2), part()], 1),
        ([part(), NOTHING, NOTHING], 0),
        ([NOTHING, NOTHING, NOTHING], 1),
    ],
)
def test_any_part_fails_the_whole(
    parts: list[Part], status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """All parts are run whatever the first ones say, with the same options, and the last line has all."""
    asked, ended = [], iter(parts)

    def ran(_name: str, folders: tuple[str, ...], options: tuple[str, ...]) -> Part:
        asked.append((folders, options))
        return next(ended)

    monkeypatch.setattr(run, "run", ran)
    assert run.main(("-k", "x")) == status
    assert asked == [(VIRTUAL, (*ALL_CORES, "-k", "x")), (PROCESSES, (*TWO, "-k", "x")), (REAL, ("-k", "x"))]
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == ". ".join(["FAILED" if status else "OK", *map(str, parts)]) + "."


def test_a_report_is_pytest_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a real run: how many there were, what failed, and its status."""
    (tmp_path / "tests" / "one").mkdir(parents=True)
    (tmp_path / "tests" / "one" / "test_it.py").write_text("def test_a(): pass\ndef test_b(): assert 0\n")
    monkeypatch.setattr(run, "ROOT", tmp_path)
    ended = run.run("one", ("one",), ("-q",))
    assert (ended.status, ended.tests, list(ended.failed)) == (1, 2, ["tests/one/test_it.py::test_b"])
