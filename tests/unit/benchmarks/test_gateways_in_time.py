"""The benchmark of several gateways in virtual time, as its command line starts it."""

from benchmarks.gateways_in_time import asked_for, one
from tests.support.virtual_time import run_virtual


def test_its_command_line_is_what_is_run():
    """Every request of a short load is served, by no more sequences than were asked for."""
    words = "--gateways 2 --replicas 2 --sequences 3 --seconds 2 --rate 6 --words 40"
    load, numbers = asked_for(words.split())
    (number,) = numbers
    found = run_virtual(one(number, load))
    assert (found.failed, len(found.first_s) > 2, 0 < found.most <= 3) == (0, True, True)
