"""One answer: its buffer, its silences, and when it gives its connection back. Silences pass on a clock that jumps."""

import asyncio
from collections.abc import Callable

import pytest

from backends.backend import FirstByteTimeout, StreamCut
from tests.support.scripted_server import answer, chunked
from tests.support.virtual_time import run_virtual
from tests.support.wired import Wired, rest_of


async def test_released_only_after_the_last_byte_was_read():
    """A connection handed on before its reader has drained it would lose that reader's data."""
    wired = Wired()
    response = wired.start()
    wired.receive(*chunked(b"a", b"b"))
    await response.wait_head()
    assert wired.log == ["opened"]
    assert await response.read() == b"ab"
    assert wired.log == ["opened", "released"]


async def test_closing_a_complete_answer_unread_gives_the_connection_back():
    """The wire is clean and the engine has nothing left to stop."""
    wired = Wired()
    response = wired.start()
    wired.receive(answer(b"an error that nobody reads"))
    response.close()
    response.close()
    assert (wired.log, await response.read()) == (["opened", "released"], b"")


async def test_an_old_answer_cannot_touch_the_next_one():
    """Closing it, or reading its end again, leaves the connection to its new user."""
    wired = Wired()
    first = wired.start()
    wired.receive(answer(b"1"))
    await first.read()
    second = wired.start()
    first.close()
    assert await first.read() == b""
    wired.receive(answer(b"2"))
    assert await second.read() == b"2"
    assert wired.log == ["opened", "released", "released"]


async def test_a_full_buffer_pauses_the_engine_until_it_is_read():
    """Backpressure: reading stops beyond the bound and goes on with the next read."""
    wired = Wired(buffer_bytes=10)
    response = wired.start()
    wired.receive(*chunked(b"x" * 10, end=False))
    assert wired.transport.reading
    wired.receive(b"1\r\nx\r\n")
    assert not wired.transport.reading
    assert await response.read() == b"x" * 11
    assert wired.transport.reading


async def test_a_connection_goes_back_reading():
    """An answer whose end came while paused does not leave a deaf connection behind."""
    wired = Wired(buffer_bytes=10)
    response = wired.start()
    wired.receive(answer(b"x" * 11))
    assert not wired.transport.reading
    await response.read()
    assert (wired.transport.reading, wired.log) == (True, ["opened", "released"])


async def test_closing_early_closes_the_socket():
    """That is how an engine learns to stop; what was buffered is not given out any more."""
    wired = Wired()
    response = wired.start()
    wired.receive(*chunked(b"abc", end=False))
    response.close()
    assert wired.transport.aborted
    with pytest.raises(StreamCut):
        await response.read()


def test_closing_wakes_a_waiting_reader():
    """Nobody waits for ever on an answer that was closed elsewhere."""

    async def main() -> None:
        response = Wired().start()
        asyncio.get_running_loop().call_later(1, response.close)
        with pytest.raises(StreamCut):
            await response.read()

    run_virtual(main())


def test_silence_before_the_head_is_a_first_byte_timeout():
    """Measured from the sending of the request."""

    async def main() -> None:
        wired = Wired()
        response = wired.start()
        with pytest.raises(FirstByteTimeout):
            await response.wait_head()
        assert asyncio.get_running_loop().time() == 300
        assert wired.transport.aborted

    run_virtual(main())


def test_silence_between_head_and_body_is_the_prefill():
    """An engine may send its head at once and its first token late: the first-byte bound holds, not the stall's."""

    async def main() -> None:
        wired = Wired()
        response = wired.start()
        wired.receive(*chunked(end=False))
        await response.wait_head()
        with pytest.raises(FirstByteTimeout):
            await response.read()
        assert asyncio.get_running_loop().time() == 300

    run_virtual(main())


def test_silence_in_a_body_is_a_stall():
    """The clock of a stall starts with the wait, and every byte starts it anew."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        wired = Wired()
        response = wired.start()
        wired.receive(*chunked(b"a", end=False))
        assert await response.read() == b"a"
        for second in range(50, 500, 50):
            loop.call_at(second, wired.receive, b"1\r\nb\r\n")
            assert await response.read() == b"b"
        with pytest.raises(StreamCut, match="stalled"):
            await response.read()
        assert loop.time() == 450 + 60

    run_virtual(main())


def test_a_slow_reader_is_not_a_stall():
    """Time that nobody waited for the engine is not the engine's."""

    async def main() -> None:
        wired = Wired()
        response = wired.start()
        wired.receive(*chunked(b"a", end=False))
        await response.read()
        await asyncio.sleep(1000)
        wired.receive(b"1\r\nb\r\n", b"0\r\n\r\n")
        assert await rest_of(response) == b"b"

    run_virtual(main())


class Bucket:
    """A sink of the test's making: full beyond `size` bytes, closed by a `stop` byte."""

    def __init__(self, size: int = 1000, *, stop: bytes = b"!", broken: Exception | None = None) -> None:
        self.held = b""
        self.closed = False
        self._size = size
        self._stop = stop
        self._broken = broken
        self._resume: Callable[[], None] | None = None

    @property
    def full(self) -> bool:
        return len(self.held) > self._size

    def feed(self, data: bytes, now: float) -> bool:
        if self._broken is not None:
            raise self._broken
        self.held += data
        self.closed = self._stop in data
        return not (self.closed or self.full)

    def feed_frames(self, data: bytes, now: float) -> int:
        return 0

    def when_room(self, resume: Callable[[], None]) -> None:
        self._resume = resume

    def empty(self) -> None:
        self.held, resume, self._resume = b"", self._resume, None
        assert resume is not None, "nobody waits for room"
        resume()


async def test_pouring_passes_each_read_on_at_once():
    """What came before, too; it returns at the end, and the connection has gone back."""
    wired = Wired()
    response = wired.start()
    bucket = Bucket()
    wired.receive(*chunked(b"a", end=False))
    pouring = asyncio.get_running_loop().create_task(response.pour(bucket))
    await asyncio.sleep(0)
    wired.receive(b"1\r\nb\r\n")
    assert bucket.held == b"ab"
    wired.receive(b"0\r\n\r\n")
    await pouring
    assert (bucket.held, wired.log) == (b"ab", ["opened", "released"])


async def test_a_full_sink_pauses_its_own_engine_until_there_is_room():
    """Backpressure reaches the socket; nothing is lost, and the end may come meanwhile."""
    wired = Wired()
    response = wired.start()
    bucket = Bucket(size=2)
    pouring = asyncio.get_running_loop().create_task(response.pour(bucket))
    await asyncio.sleep(0)
    wired.receive(*chunked(b"abc", end=False))
    assert not wired.transport.reading
    bucket.empty()
    assert wired.transport.reading
    wired.receive(b"1\r\nd\r\n0\r\n\r\n")
    await pouring
    assert bucket.held == b"d"


async def test_a_closed_sink_ends_the_pouring_and_the_rest_can_be_read():
    """After [DONE] the relay wants no more; what follows belongs to whoever reads on."""
    wired = Wired()
    response = wired.start()
    bucket = Bucket()
    pouring = asyncio.get_running_loop().create_task(response.pour(bucket))
    await asyncio.sleep(0)
    wired.receive(*chunked(b"a!", end=False), b"4\r\nrest\r\n0\r\n\r\n")
    await pouring
    assert bucket.held == b"a!"
    assert await rest_of(response) == b"rest"
    assert wired.log == ["opened", "released"]


async def test_what_a_sink_raises_comes_out_of_the_pouring():
    """In the task that waits, not in the event loop's reader; nothing more is fed."""
    wired = Wired()
    response = wired.start()
    pouring = asyncio.get_running_loop().create_task(response.pour(Bucket(broken=RuntimeError("no"))))
    await asyncio.sleep(0)
    wired.receive(*chunked(b"a", b"b"))
    with pytest.raises(RuntimeError, match="no"):
        await pouring
    response.close()
    assert wired.log[-1] == "released"


async def test_a_cut_while_pouring():
    """What came before the cut was passed on."""
    wired = Wired()
    response = wired.start()
    bucket = Bucket()
    pouring = asyncio.get_running_loop().create_task(response.pour(bucket))
    await asyncio.sleep(0)
    wired.receive(*chunked(b"a", end=False))
    wired.transport.lose(ConnectionResetError())
    with pytest.raises(StreamCut):
        await pouring
    assert bucket.held == b"a"


def test_silence_while_pouring_is_a_stall_unless_the_sink_is_full():
    """Each read starts the clock anew; while it is we who do not read, it stands."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        wired = Wired()
        response = wired.start()
        bucket = Bucket(size=2)
        pouring = asyncio.get_running_loop().create_task(response.pour(bucket))
        await asyncio.sleep(0)
        wired.receive(*chunked(b"a", end=False))
        loop.call_at(50, wired.receive, b"2\r\nbc\r\n")  # full from here
        loop.call_at(500, bucket.empty)
        loop.call_at(550, wired.receive, b"1\r\nd\r\n")
        with pytest.raises(StreamCut, match="stalled"):
            await pouring
        assert loop.time() == 550 + 60
        assert bucket.held == b"d"

    run_virtual(main())
