"""When the series of replicas that have left go: late enough for every scraper, and never too many of them."""

from batching.request import ReplicaId
from router.departed import Departed

HOUR_S = 3600.0


class Subject(Departed):
    def __init__(self) -> None:
        self.forgotten: list[str] = []
        self.busy: set[str] = set()
        super().__init__(self.forgotten.append, self.busy.__contains__)


def left(subject: Subject, *names: str, now: float = 0.0) -> None:
    for name in names:
        subject.left(ReplicaId(name), now)


def test_after_an_hour():
    """Not before; and each once."""
    subject = Subject()
    left(subject, "a")
    left(subject, "b", now=10.0)
    subject.look(HOUR_S - 1)
    assert subject.forgotten == []
    for now in (HOUR_S, HOUR_S + 1, HOUR_S + 10):
        subject.look(now)
    assert subject.forgotten == ["a", "b"]
    assert len(subject) == 0


def test_who_comes_back_goes_on():
    """Its counters are kept, and the hour begins anew when it leaves again."""
    subject = Subject()
    left(subject, "a")
    subject.came(ReplicaId("a"))
    subject.look(2 * HOUR_S)
    left(subject, "a", now=2 * HOUR_S)
    subject.look(2.5 * HOUR_S)
    assert subject.forgotten == []


def test_the_oldest_of_too_many():
    """A storm of reclaims leaves no more than 128 behind."""
    subject = Subject()
    left(subject, *(str(number) for number in range(200)))
    subject.look(1.0)
    assert subject.forgotten == [str(number) for number in range(72)]


def test_who_still_answers_is_waited_for():
    """A stream that outlives its replica's removal is counted where it began."""
    subject = Subject()
    subject.busy.add("a")
    left(subject, "a", "b")
    subject.look(HOUR_S)
    assert subject.forgotten == ["b"]
    subject.busy.clear()
    subject.look(HOUR_S + 1)
    assert subject.forgotten == ["b", "a"]
