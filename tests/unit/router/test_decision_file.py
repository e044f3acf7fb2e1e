"""A decisions file: header, lines, machines, rotation; and what is said of one that is none."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from batching.decision_record import decide_again
from config.schema import Config
from router.decision_documents import Pseudonyms
from router.decision_file import MARK, DecisionFile, read_decisions
from tests.support.decisions import Kept
from tests.support.scheduling import profile, request

MACHINES = (profile("a"), profile("b", gpu="A100-80G", usd_per_hour=1.5))


def opened(path: Path, **options: object) -> DecisionFile:
    return DecisionFile(path, Config(), Pseudonyms(b"k"), policy="penstock", **options)  # type: ignore[arg-type]


def written(path: Path, requests: int = 3) -> Path:
    """Some requests that were answered."""
    kept = Kept(*MACHINES)
    for number in range(requests):
        kept.answer(kept.place(request(str(number))), first_s=0.1, last_s=1.0, tokens=5)
    file = opened(path)
    file.write(reversed(kept.decisions.recent(limit=99)), MACHINES)
    file.close()
    return path


def test_what_is_written_is_read(tmp_path: Path):
    """Records in order, with the machines as simulated replicas of their type, and the settings that decided."""
    found = read_decisions(written(tmp_path / "d.jsonl"))
    assert [record.request_id for record in found.records] == ["0", "1", "2"]
    assert all(decide_again(record) is not None for record in found.records)
    assert {name: (r.backend, r.gpu.type, r.cost.usd_per_hour) for name, r in found.replicas.items()} == {
        "a": ("simulated", "H100-80G", 3.6), "b": ("simulated", "A100-80G", 1.5),
    }  # fmt: skip
    assert (found.policy, found.scheduling) == ("penstock", Config().scheduling)


def test_a_candidate_that_offers_the_same_is_only_named(tmp_path: Path):
    """Files are small where little changes; the reader fills it in."""
    path = written(tmp_path / "d.jsonl")
    rows = [json.loads(line)["offers"] for line in path.read_text().splitlines()[2:]]
    assert not any(isinstance(row, str) for row in rows[0])
    assert all("a" in row for row in rows[1:])  # it stood idle; the other has learned
    first, *others = read_decisions(path).records
    assert all(set(record.offers) & set(first.offers) for record in others)


def test_machines_are_told_when_they_change(tmp_path: Path):
    """A price that moves is written once; the last one counts."""
    file = opened(tmp_path / "d.jsonl")
    for usd in (1.0, 1.0, 2.0):
        file.write((), (profile("a", usd_per_hour=usd),))
    file.close()
    lines = (tmp_path / "d.jsonl").read_text().splitlines()
    assert [json.loads(line)["fleet"][0]["cost"]["usd_per_hour"] for line in lines[1:]] == [1.0, 2.0]
    assert read_decisions(tmp_path / "d.jsonl").replicas["a"].cost.usd_per_hour == 2.0


def test_a_file_that_is_full_is_put_aside(tmp_path: Path):
    """At its bound it becomes NAME.1, over the one before; each is whole by itself."""
    path = tmp_path / "d.jsonl"
    file = opened(path, max_bytes=1)
    kept = Kept(*MACHINES)
    for number in range(3):
        kept.answer(kept.place(request(str(number))), first_s=0.1, last_s=1.0, tokens=5)
        file.write([kept.last], MACHINES)
    file.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.jsonl", "d.jsonl.1"]
    assert [r.request_id for r in read_decisions(path).records] == ["2"]
    assert [r.request_id for r in read_decisions(tmp_path / "d.jsonl.1").records] == ["1"]


def test_writers_follow_one_another(tmp_path: Path):
    """A gateway that starts again appends under a header of its own; a line its predecessor was killed in is passed over."""
    path = written(tmp_path / "d.jsonl")
    path.write_bytes(path.read_bytes()[:-30])
    written(path, requests=2)
    assert [record.request_id for record in read_decisions(path).records] == ["0", "1", "0", "1"]


def test_a_truncated_last_line_is_tolerated(tmp_path: Path):
    """A file is read while its gateway writes."""
    path = written(tmp_path / "d.jsonl")
    path.write_bytes(path.read_bytes()[:-30])
    assert [record.request_id for record in read_decisions(path).records] == ["0", "1"]


def garbled(text: str) -> str:
    first, fleet, one, *rest = text.splitlines()
    return "\n".join([first, fleet, one[:40], *rest])


def without_field(text: str) -> str:
    first, *rest = text.splitlines()
    return "\n".join([first.replace('"replica",', ""), *rest])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "empty"),
        (lambda text: "TIMESTAMP,ContextTokens\n1,2\n", r"d\.jsonl:1: no decisions file"),
        (lambda text: '{"timestamp": 1}\n', r"d\.jsonl:1: no decisions file; its first line must be a header"),
        (lambda text: text.replace(f'"{MARK}":1', f'"{MARK}":7'), "of version 7, and this penstock reads version 1; "),
        (garbled, r"d\.jsonl:3: not JSON"),
        (lambda text: text.replace('"choice"', '"chose"'), r"d\.jsonl:3: not a placement"),
        (without_field, r"d\.jsonl:3: not a placement"),
        (lambda text: text.replace('"queue":{', '"queue":{"max":1,'), r"d\.jsonl:1: a header that cannot be read"),
        (lambda text: text.replace('"H100-80G"', "5"), r"d\.jsonl:2: a fleet that cannot be read"),
    ],
)  # fmt: skip
def test_what_is_no_decisions_file_is_said_so(tmp_path: Path, change: Callable[[str], str], message: str):
    """One line: where it is wrong, and what to do."""
    path = written(tmp_path / "d.jsonl")
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message) as caught:
        read_decisions(path)
    assert len(str(caught.value).splitlines()) == 1
