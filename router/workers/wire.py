"""What supervisor and workers say to each other over a Unix socket: four bytes of length, then MessagePack.

The socket lies in a directory that only this user can enter; what comes over it is trusted, and still bounded.
"""

import asyncio
from enum import StrEnum
from typing import Final

import msgspec

from batching.payers import Payer
from batching.request import ReplicaId
from batching.shares import Claim as ShareClaim
from batching.shares import HolderId, Running, Share
from router.standing import Standing
from router.tenants.limit_book import Claim, Grant
from router.usage_book import Entry

MAX_BYTES: Final = 64 * 2**20  # a page of metrics of a thousand replicas has some ten
_LENGTH_BYTES: Final = 4


class Topic(StrEnum):
    """What workers can be asked."""

    PAGE = "page"  # their metrics
    DECISIONS = "decisions"  # their last placements
    LEFT = "left"  # what runs on their replicas
    REGISTRATION = "registration"  # nothing: they are told of an engine that called in
    BOARD = "board"  # their part of the board
    FAREWELL = "farewell"  # the same, after a word about one of them that holds for all
    PREFIXES = "prefixes"  # nobody: the hub itself has what others said of prefix caches
    USAGE = "usage"  # what requests have used that the hub's book does not have yet


# -- from a worker -------------------------------------------------------------------------------------------------------


class Hello(msgspec.Struct, tag="hello"):
    """The first message of a connection."""

    seat: int


class Ready(msgspec.Struct, tag="ready"):
    """It serves."""

    banner: str


class Report(msgspec.Struct, tag="report"):
    """What it has of every replica."""

    number: int
    claims: dict[ReplicaId, ShareClaim]
    payers: dict[ReplicaId, Payer]
    service: bytes = b""  # to tenants, so far (`batching.service`)


class Claims(msgspec.Struct, tag="claims"):
    """What it wants of tenants' limits, and gives back."""

    number: int
    of: dict[str, Claim]


class Ask(msgspec.Struct, tag="ask"):
    """A question to all workers, itself included; or to the hub."""

    id: int
    topic: Topic
    question: bytes


class Reply(msgspec.Struct, tag="reply"):
    """To a `Question`; id 0: a page that nobody asked for, to be kept."""

    id: int
    body: bytes


class Used(msgspec.Struct, tag="used"):
    """What requests have used since it last said so, for the book."""

    entries: list[Entry]


class Said(msgspec.Struct, tag="said"):
    """What it has to say on a topic, in place of what it said before; small."""

    topic: str
    body: bytes


class Runs(msgspec.Struct, tag="runs"):
    """What it has running by now, of the replicas where that has changed."""

    of: dict[ReplicaId, Running]


FromWorker = Runs | Hello | Ready | Report | Claims | Ask | Reply | Used | Said

# -- to a worker ---------------------------------------------------------------------------------------------------------


class Answer(msgspec.Struct, tag="answer"):
    """Its shares; counts as the answer to this report."""

    number: int
    shares: dict[ReplicaId, Share]
    paying: dict[ReplicaId, int]  # parts of each price
    service: dict[HolderId, bytes] = {}  # what others have said of theirs since the last answer


class Grants(msgspec.Struct, tag="grants"):
    """The answer to `Claims` of this number."""

    number: int
    of: dict[str, Grant]


class Crew(msgspec.Struct, tag="crew"):
    """How many serve, of how many."""

    live: int
    seats: int


class Standings(msgspec.Struct, tag="standings"):
    """What was said of replicas before this worker came; deadlines count from now."""

    of: dict[str, Standing]


class Question(msgspec.Struct, tag="question"):
    """Somebody asks; to be replied to under this id."""

    id: int
    topic: Topic
    question: bytes


class Replies(msgspec.Struct, tag="replies"):
    """All that was said to an `Ask`."""

    id: int
    bodies: list[bytes]


class Heard(msgspec.Struct, tag="heard"):
    """What the other workers say on a topic now, each under a name of its own."""

    topic: str
    by: dict[HolderId, bytes]


class Stop(msgspec.Struct, tag="stop"):
    """Drain and end; `now`: without waiting for streams."""

    now: bool


class Reload(msgspec.Struct, tag="reload"):
    """Read the configuration again."""


class Beside(msgspec.Struct, tag="beside"):
    """What all others have running by now, of some replicas."""

    of: dict[ReplicaId, Running]


ToWorker = Beside | Answer | Grants | Crew | Standings | Question | Replies | Heard | Stop | Reload

_encoder: Final = msgspec.msgpack.Encoder()
_from_worker: Final = msgspec.msgpack.Decoder(FromWorker)
_to_worker: Final = msgspec.msgpack.Decoder(ToWorker)


def send(writer: asyncio.StreamWriter, message: FromWorker | ToWorker) -> None:
    """Never waits. A reader that has stopped reading is cut off rather than remembered without end."""
    if writer.transport.is_closing():
        return
    data = _encoder.encode(message)
    writer.write(len(data).to_bytes(_LENGTH_BYTES, "big") + data)
    if writer.transport.get_write_buffer_size() > MAX_BYTES:
        writer.transport.abort()


async def from_worker(reader: asyncio.StreamReader) -> FromWorker | None:
    """The next message; None: there will be no more."""
    data = await _frame(reader)
    return None if data is None else _from_worker.decode(data)


async def to_worker(reader: asyncio.StreamReader) -> ToWorker | None:
    """The next message; None: there will be no more."""
    data = await _frame(reader)
    return None if data is None else _to_worker.decode(data)


async def _frame(reader: asyncio.StreamReader) -> bytes | None:
    try:
        size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
        return await reader.readexactly(size) if size <= MAX_BYTES else None
    except (asyncio.IncompleteReadError, OSError):
        return None
