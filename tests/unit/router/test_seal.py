"""What is closed with a secret says nothing to others, and nothing that others wrote is believed."""

from hypothesis import given
from hypothesis import strategies as st

from router.shared.seal import Seal


@given(st.binary(max_size=3000))
def test_who_has_the_secret_reads_it(text: bytes):
    """Whatever it is, and however long; it grows by 32 bytes."""
    closed = Seal(b"secret", "prefixes").closed(text)
    assert Seal(b"secret", "prefixes").opened(closed) == text
    assert len(closed) == len(text) + 32


def test_others_read_nothing_and_write_nothing():
    """Another secret or purpose, a changed byte, too few of them: None. Twice the same is closed to different bytes."""
    seal, text = Seal(b"secret", "prefixes"), b"a" * 64
    closed = seal.closed(text)
    assert Seal(b"guessed", "prefixes").opened(closed) is None
    assert Seal(b"secret", "else").opened(closed) is None
    for position in range(len(closed)):
        changed = bytearray(closed)
        changed[position] ^= 1
        assert seal.opened(bytes(changed)) is None
    assert seal.opened(closed[:31]) is seal.opened(b"") is None
    assert seal.closed(text)[32:] != closed[32:]
    assert text[:8] not in closed
