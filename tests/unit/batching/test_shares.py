"""The book of shares by example: who gets what, and what a late message must not do."""

from batching.request import ReplicaId
from batching.share_holder import Holding
from batching.shares import WHOLE, Claim, HolderId, Running, Share, ShareBook, divided, parts_for

A = ReplicaId("a")
ONE, TWO = HolderId("one"), HolderId("two")


def told(book: ShareBook, holder: HolderId) -> int:
    return book.answer(holder)[1][A].parts


def report(book: ShareBook, holder: HolderId, number: int, claim: Claim) -> int:
    assert book.report(holder, number, {A: claim})
    return told(book, holder)


def halves() -> ShareBook:
    """Two idle holders that keep half each."""
    book = ShareBook()
    assert report(book, ONE, 1, Claim(0, 0)) == WHOLE
    assert report(book, TWO, 1, Claim(0, 0)) == 0
    assert report(book, ONE, 2, Claim(WHOLE, 0)) == WHOLE // 2
    assert report(book, ONE, 3, Claim(WHOLE // 2, 0)) == WHOLE // 2
    assert report(book, TWO, 2, Claim(0, 0)) == WHOLE // 2
    return book


def test_idle_holders_share_alike():
    """Alone, a holder has the whole; a second one has half once the first has said that it keeps to its half."""
    assert halves().bounds(A) == {ONE: WHOLE // 2, TWO: WHOLE // 2}


def test_demand_is_followed_but_for_a_little():
    """Who has much waiting gets what the idle one can spare, and only after that one has confirmed."""
    book = halves()
    assert report(book, ONE, 4, Claim(WHOLE // 2, WHOLE // 2, WHOLE // 2 + 9, WHOLE)) == WHOLE // 2
    assert book.unsettled() == {TWO}
    assert told(book, TWO) == 9  # as much as one request takes
    assert book.unsettled() == set()
    report(book, TWO, 3, Claim(9, 0))
    assert book.unsettled() == {ONE}
    assert told(book, ONE) == WHOLE - 9


def test_who_needs_the_whole_gets_it_when_the_others_have_ended():
    """A request wider than any share waits until nobody else runs anything; then not even a floor is kept from it."""
    book = halves()
    report(book, ONE, 4, Claim(WHOLE // 2, 0, WHOLE, WHOLE))
    report(book, TWO, 3, Claim(WHOLE // 2, 1000))
    report(book, TWO, 4, Claim(1000, 1000))
    assert told(book, ONE) == WHOLE - 1000
    report(book, TWO, 5, Claim(1000, 0))
    report(book, TWO, 6, Claim(0, 0))
    assert told(book, ONE) == WHOLE


def test_heads_take_turns():
    """Two whose heads need more than half each have it one after the other, not half each for ever."""
    book = halves()
    most = WHOLE * 3 // 4
    report(book, ONE, 4, Claim(WHOLE // 2, 0, most, most))
    report(book, TWO, 3, Claim(WHOLE // 2, 0, most, most))
    report(book, TWO, 4, Claim(WHOLE // 4, 0, most, most))
    assert told(book, ONE) == most
    report(book, ONE, 5, Claim(most, 0, most, most))  # it does not use it: the other's turn
    assert told(book, ONE) == WHOLE // 4
    report(book, ONE, 6, Claim(WHOLE // 4, 0, most, most))
    assert told(book, TWO) == most


def test_who_has_much_begins_nothing_new_while_others_have_less():
    """Of two who want all, one with three quarters in use should have half: what ends there goes to the other. It keeps what nobody wants."""
    sixteenth = WHOLE // 16
    much = Claim(12 * sixteenth, 12 * sixteenth, 13 * sixteenth, WHOLE, Running(12))
    for wanted, left in ((WHOLE, 8), (6 * sixteenth, 10), (2 * sixteenth, 12)):
        claims = {ONE: much, TWO: Claim(0, 0, sixteenth, wanted)}
        parts = divided(A, claims, {ONE: 12 * sixteenth, TWO: 0}, {ONE: 1, TWO: 2})
        assert parts[ONE] >= left * sixteenth
        assert left == 12 or parts[ONE] == left * sixteenth
        assert parts[TWO] >= sixteenth


def test_a_sequence_more_than_the_even_part_is_kept():
    """Three with sixteen places: one has six, and giving one up would only move it."""
    sixteenth = WHOLE // 16
    names = [HolderId(name) for name in "abc"]
    claims = {
        name: Claim(n * sixteenth, n * sixteenth, (n + 1) * sixteenth, WHOLE, Running(n))
        for name, n in zip(names, (6, 5, 5), strict=True)
    }
    kept = {name: claim.in_use for name, claim in claims.items()}
    assert divided(A, claims, kept, dict.fromkeys(names, 1)) == kept


def test_what_is_left_over_is_whole_places():
    """Three free places among four who want none: nobody is left with a shred of one, and at other replicas others have them."""
    place = WHOLE // 16
    names = [HolderId(name) for name in "abcd"]
    used = dict(zip(names, (4, 3, 3, 3), strict=True))
    claims = {name: Claim(4 * place, n * place, 0, 0, Running(n)) for name, n in used.items()}
    favoured = set()
    for number in range(12):
        parts = divided(ReplicaId(f"r{number}"), claims, {n: c.in_use for n, c in claims.items()}, {})
        assert sum(parts.values()) == WHOLE
        assert all(part % place == 0 for part in parts.values())
        favoured |= {name for name in names if parts[name] > used[name] * place}
    assert favoured == set(names)


def test_who_needs_more_than_its_even_part_gets_it_in_its_turn():
    """The longest waiting head has its room, although all that is there is in use by others alike."""
    eighth = WHOLE // 8
    names = [HolderId(name) for name in "abc"]
    claims = {
        names[0]: Claim(0, 0, 5 * eighth, 5 * eighth, Running(0)),
        names[1]: Claim(4 * eighth, 4 * eighth, 5 * eighth, WHOLE, Running(4)),
        names[2]: Claim(4 * eighth, 4 * eighth, 5 * eighth, WHOLE, Running(4)),
    }
    kept = {name: claim.in_use for name, claim in claims.items()}
    parts = divided(A, claims, kept, {names[0]: 1, names[1]: 2, names[2]: 3})
    assert parts[names[0]] == 5 * eighth
    assert sum(parts.values()) <= WHOLE


def test_what_others_begin_is_heard_between_reports():
    """Of holders that are on the book; who tells is not told itself."""
    book = halves()
    book.hear(TWO, {A: Running(3, 40, 0.2)})
    assert book.others(ONE, [A]) == {A: Running(3, 40, 0.2)}
    assert book.others(TWO, [A, ReplicaId("gone")]) == {A: Running()}
    assert book.answer(ONE)[1][A].others == Running(3, 40, 0.2)


def test_who_leaves_gives_back_all():
    """A holder that is gone keeps nothing, whatever it ran; who is short hears of it."""
    book = halves()
    report(book, ONE, 4, Claim(WHOLE // 2, WHOLE // 2, WHOLE, WHOLE))
    book.leave(TWO)
    assert book.unsettled() == {ONE}
    assert told(book, ONE) == WHOLE
    assert book.bounds(A) == {ONE: WHOLE}


def test_report_that_was_overtaken_counts_for_nothing():
    """What an old report confirms may have been raised since."""
    book = halves()
    assert report(book, ONE, 6, Claim(WHOLE // 2, 7)) == WHOLE // 2
    assert not book.report(ONE, 5, {A: Claim(7, 7)})
    assert book.bounds(A)[ONE] == WHOLE // 2


class Site:
    """One replica of a scheduler."""

    def __init__(self) -> None:
        self.parts, self.in_use = 0, 0
        self.others = Running()

    def claims(self) -> dict[ReplicaId, Claim]:
        return {A: Claim(self.parts, self.in_use)}

    def running(self) -> dict[ReplicaId, Running]:
        return {}

    def beside(self, replica: ReplicaId, others: Running, now: float) -> None:
        self.others = others

    def allot(self, replica: ReplicaId, parts: int) -> None:
        assert replica == A
        self.parts = parts


def test_answer_to_an_older_report_counts_for_nothing():
    """What it promised may have been given to another since the later report confirmed less."""
    site = Site()
    holding = Holding(site)
    first, _ = holding.report()
    second, _ = holding.report()
    assert not holding.take(first, {A: Share(WHOLE)}, 0.0)
    assert site.parts == 0
    holding.take(second, {A: Share(5, Running(2, 3))}, 0.0)
    assert (site.parts, site.others) == (5, Running(2, 3))


def test_lower_share_is_kept_to_as_far_as_it_is_free():
    """At the next report, which says so; what is in use goes with the last of it."""
    site = Site()
    holding = Holding(site)
    holding.take(holding.report()[0], {A: Share(100)}, 0.0)
    site.in_use = 60
    assert holding.take(holding.report()[0], {A: Share(40)}, 0.0)
    assert site.parts == 100
    assert holding.report()[1][A].enforced == 60
    assert site.parts == 40
    assert holding.owing
    site.in_use = 10
    assert holding.report()[1][A].enforced == site.parts == 40
    assert not holding.owing


def test_parts_leave_room_for_what_they_are_for():
    """A share computed for an amount has room for it, whatever is rounded; shares of all do not exceed the budget."""
    for total in (1, 3, 8, 255, 29_000):
        for amount in (0, 1, total // 2, total):
            assert Share(parts_for(amount, total)).of(total) >= amount
        assert 3 * Share(WHOLE // 3).of(total) <= total
