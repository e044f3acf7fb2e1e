"""How late the event loop was: the worst is kept for as long as a scraper may take, and not for ever."""

from router.lag import Lag


def test_the_worst_of_a_minute():
    """A stall is told at every scrape of the next 50 seconds at least, and forgotten after 60."""
    subject = Lag()
    stalled_s = 5.0
    for step in range(1, 800):
        now = step / 10
        subject.note(0.7 if now == stalled_s else 0.001, now)
        if stalled_s <= now < stalled_s + 50:
            assert subject.worst_s == 0.7
        elif now < stalled_s or now > stalled_s + 60:
            assert subject.worst_s == 0.001
