"""What other gateways hold against replicas: each accusation is news once, and lapses with its gateway's word."""

from batching.hearsay import Accusation, Hearsay
from batching.request import ReplicaId
from batching.shares import HolderId

G1, G2 = HolderId("g1"), HolderId("g2")
A, B = ReplicaId("a"), ReplicaId("b")


def test_a_word_is_news_once():
    """Repeated with every report it is the same word; taken back and said again it is a new one."""
    hearsay = Hearsay()
    first = hearsay.take({G1: {A: "silent"}}, 1.0)
    assert first.accusations == [Accusation(G1, A, "silent", credible=True)]
    assert hearsay.take({G1: {A: "no token"}}, 2.0).accusations == []
    assert hearsay.take({G1: {}}, 3.0).accusations == []
    assert [each.replica for each in hearsay.take({G1: {A: "silent"}}, 4.0).accusations] == [A]


def test_each_gateway_s_word_is_its_own():
    """A second gateway that says the same is news, and what one takes back stands while the other says it."""
    hearsay = Hearsay()
    hearsay.take({G1: {A: "silent"}}, 1.0)
    assert [each.by for each in hearsay.take({G1: {A: "silent"}, G2: {A: "late"}}, 2.0).accusations] == [G2]
    news = hearsay.take({G1: {}, G2: {A: "late"}}, 3.0)
    assert (news.lapsed, hearsay.stands(A)) == (set(), True)
    news = hearsay.take({G1: {}, G2: {}}, 4.0)
    assert (news.lapsed, news.cleared, hearsay.stands(A)) == ({A}, {A}, False)


def test_who_is_not_heard_any_more_has_cleared_nobody():
    """Its words lapse; that it has found the replica alive is not among what it said."""
    hearsay = Hearsay()
    hearsay.take({G1: {A: "silent"}}, 1.0)
    news = hearsay.take({}, 2.0)
    assert (news.lapsed, news.cleared) == ({A}, set())


def test_whose_word_was_refuted_is_believed_less_for_a_while():
    """About any replica, and not for ever; others are believed as before."""
    hearsay = Hearsay()
    hearsay.take({G1: {A: "silent"}, G2: {}}, 1.0)
    hearsay.refuted(A, 2.0)
    news = hearsay.take({G1: {A: "silent", B: "silent"}, G2: {B: "late"}}, 3.0)
    assert [(each.by, each.credible) for each in news.accusations] == [(G1, False), (G2, True)]
    hearsay.take({G1: {}, G2: {}}, 4.0)
    assert [each.credible for each in hearsay.take({G1: {A: "silent"}}, 200.0).accusations] == [True]
