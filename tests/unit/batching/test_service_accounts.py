"""What tenants were served elsewhere, by example: what it does to who is next, and how much is said of how many."""

import msgspec

from batching.lane import Lane, Waiting
from batching.placement import Need
from batching.service import MOST_TOLD, Service, Told
from batching.ticket import Ticket, TicketId, TicketState
from config.schema import Floors
from tests.support.scheduling import placed, profile, request, scheduler

WATCHED, BATCHES = ("m", 0), ("m", 1)
News = dict[tuple[str, int], dict[str, float]]


class Till:
    """Counters that are only written down."""

    def __init__(self) -> None:
        self.given: News = {}
        self.taken: News = {}

    def collect_service(self) -> News:
        given, self.given = self.given, {}
        return given

    def serve_elsewhere(self, service: News) -> None:
        for class_, by_tenant in service.items():
            for tenant, tokens in by_tenant.items():
                own = self.taken.setdefault(class_, {})
                own[tenant] = own.get(tenant, 0.0) + tokens


class Process:
    """One that serves and tells."""

    def __init__(self, name: str) -> None:
        self.name, self.till = name, Till()
        self.service = Service(self.till)
        self.service.tell(name, 0.0)

    def tell(self, now: float, **served: float) -> bytes:
        self.till.given = {WATCHED: served} if served else {}
        return self.service.tell(self.name, now)


class Line:
    """A lane of requests of 100 tokens, one of which is placed at a time."""

    def __init__(self) -> None:
        self.lane = Lane("m", Floors(default=0, flex=0, late=0, batch=0))
        self.lane.collect_service()
        self._ids = 0

    def wait(self, *tenants: str) -> None:
        for tenant in tenants:
            self._ids += 1
            wanted = request(f"r{self._ids}", tenant=tenant)
            need = Need(wanted, self._ids, 1, 1, 1.0, 1.0)
            ticket = Ticket(TicketId(self._ids), wanted, 0.0)
            self.lane.push(Waiting(ticket, need, 1, 100.0, (0.0, 100.0, self._ids), 0.0))

    def place(self, count: int = 1) -> str:
        """Tenants in the order in which they were served."""
        order = ""
        for _ in range(count):
            head = self.lane.peek()
            assert head is not None
            waiting = head[1]
            self.lane.take(waiting)
            waiting.ticket.state = TicketState.PLACED
            order += waiting.ticket.request.tenant
            self.lane.charge(1, waiting.ticket.request.tenant, 100, dispatch=True)
        return order


def test_who_is_served_elsewhere_waits_for_the_others():
    """Both wait here and get turns; one was served 300 elsewhere meanwhile, so that the next three are the other's."""
    line = Line()
    line.wait(*"aaaaabbbbb")
    assert line.place(2) == "ab"
    line.lane.serve_elsewhere(0, {"a": 300.0})
    assert line.place(3) == "bbb"
    assert sorted(line.place(2)) == ["a", "b"]


def test_who_was_idle_has_no_credit_over_those_served_elsewhere():
    """Nobody waits here while another process serves somebody for long; then both come, and take turns but for the last report's."""
    line = Line()
    line.wait("a")
    line.place()
    for _ in range(50):
        line.lane.serve_elsewhere(0, {"a": 100.0})
    line.wait(*"b" * 20, *"a" * 20)
    assert line.place(20).count("b") in {10, 11}


def test_a_newcomer_does_not_stand_behind_those_who_wait():
    """One is served for long elsewhere, another waits here: who comes now takes turns with the one that waits, and is not put behind it."""
    line = Line()
    line.wait(*"bbbb")
    for _ in range(50):
        line.lane.serve_elsewhere(0, {"a": 100.0})
    line.wait(*"cccc")
    assert sorted(line.place(4)) == ["b", "b", "c", "c"]


def test_little_use_elsewhere_is_no_debt_for_ever():
    """A tenant that has a little served elsewhere now and then stands with the others when it comes here, but for the last of it."""
    line = Line()
    line.wait(*"b" * 30)
    for _ in range(20):
        line.place()
        line.lane.serve_elsewhere(0, {"a": 10.0})
    line.wait(*"aaaa")
    assert sorted(line.place(6)) == ["a", "a", "a", "b", "b", "b"]


def test_who_begins_elsewhere_stands_where_it_would_here():
    """It was here once, long ago; it is served 300 elsewhere and then comes: it stands 300 behind who was served all the time, not far before it."""
    line = Line()
    line.wait("a")
    line.place()
    line.wait(*"b" * 20)
    line.place(10)
    line.lane.serve_elsewhere(0, {"a": 300.0})
    line.wait(*"aaa")
    assert line.place(2) == "bb"
    assert "a" in line.place(2)


def test_classes_are_apart():
    """What was served of batch elsewhere is no reason to wait where somebody watches."""
    one = scheduler(profile(max_num_seqs=1))
    one.stake.service.tell("one", 0.0)
    for number in range(3):
        for tenant in "ab":
            one.submit(request(f"{tenant}{number}", tenant=tenant), 0.0)
    assert placed(one.advance(0.0)) == ["a0"]
    told = Told("two", 0, 1, [(*BATCHES, [("b", 1, 10_000)])])
    one.stake.service.hear([msgspec.msgpack.encode(told)], 0.1)
    waiting = one._queue.lane("m").peek()
    assert waiting is not None
    assert waiting[1].ticket.request.tenant == "b"
    told = Told("two", 300, 2, [(*WATCHED, [("b", 2, 10_000)])])
    one.stake.service.hear([msgspec.msgpack.encode(told)], 0.4)
    waiting = one._queue.lane("m").peek()
    assert waiting is not None
    assert waiting[1].ticket.request.tenant == "a"


def test_all_have_their_turn_to_be_told():
    """More tenants than go into a report: who has most untold goes first, so that all of it arrives, and no report is large."""
    one, two = Process("one"), Process("two")
    served = {
        f"tenant-with-a-name-of-sixty-characters-which-is-much-{number:06}": 10.0 + number for number in range(300)
    }
    for turn in range(6):
        words = one.tell(0.25 * (turn + 1), **(served if turn == 0 else {}))
        assert len(words) < 6000
        two.service.hear([words], 0.25 * (turn + 1))
        assert len(two.till.taken[WATCHED]) == min(300, MOST_TOLD * (turn + 1))
    assert two.till.taken[WATCHED] == {tenant: int(tokens) for tenant, tokens in served.items()}


def test_an_account_that_was_closed_begins_anew():
    """A tenant that was idle for a minute is told of no more; when it comes back it is counted from there."""
    one, two = Process("one"), Process("two")
    two.service.hear([one.tell(1.0, a=100.0)], 1.0)
    two.service.hear([one.tell(62.0)], 62.0)
    assert one.service._accounts == {}
    two.service.hear([one.tell(63.0, a=7.0)], 63.0)
    assert two.till.taken == {WATCHED: {"a": 107.0}}


def test_of_a_long_silence_ten_seconds_are_settled():
    """Redis was away for a hundred seconds: of what the other served in them a tenth counts, and everything after it."""
    one, two = Process("one"), Process("two")
    two.service.hear([one.tell(1.0, a=100.0)], 1.0)
    two.service.hear([one.tell(101.0, a=5000.0)], 101.0)
    assert two.till.taken == {WATCHED: {"a": 600.0}}
    two.service.hear([one.tell(102.0, a=50.0)], 102.0)
    assert two.till.taken == {WATCHED: {"a": 650.0}}


def test_what_another_version_says_is_passed_over():
    """It is not understood, and what others say counts nevertheless."""
    one, two = Process("one"), Process("two")
    two.service.hear([b"\xc1", msgspec.msgpack.encode([1]), one.tell(1.0, a=5.0)], 1.0)
    assert two.till.taken == {WATCHED: {"a": 5.0}}


def test_nothing_is_counted_where_nobody_asks():
    """A gateway that is alone keeps no account of what it has served."""
    lane = Lane("m", Floors())
    lane.charge(1, "a", 100)
    assert lane._classes[0].given is None
