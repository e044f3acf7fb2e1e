"""What reading one plain event of a stream costs, by what is kept of it: `python -m benchmarks.events`. CPU microseconds.

`none`: no journal; `text`: the text is kept (migration.mode: text); `exact`: text and token ids, which are cut out of what the client gets.
"""

import time
from collections.abc import Callable
from typing import Final

from router.openai.chunks import ChunkFilter
from router.openai.journal import Journal

_EVENTS: Final = 20_000
_ROUNDS: Final = 7
_HEAD = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":'
)
_REST = b',"logprobs":null,"finish_reason":null'
_FIRST = _HEAD + b'{"role":"assistant","content":""}' + _REST + b'}],"prompt_token_ids":[1,2,3],"prompt_text":null}\n\n'


def event(number: int, *, ids: bool) -> bytes:
    """As vLLM writes it."""
    told = b',"token_ids":[%d]' % (30_000 + number) if ids else b""
    return _HEAD + b'{"content":" word"}' + _REST + told + b"}]}\n\n"


def cost_us(mode: str) -> float:
    """Of one event, on average."""
    journal = None if mode == "none" else Journal(room_bytes=10**7, exact=mode == "exact")
    chunks = ChunkFilter(strip_usage=True, expected_choices=1, chat=True, journal=journal)
    chunks.hide_ids = True
    read: Callable[[bytes], bytes] = chunks.read
    read(_FIRST)
    events = [event(number, ids=mode == "exact") for number in range(_EVENTS)]
    read(events[0])  # from which the rest is known
    began_s = time.process_time()
    for one in events:
        read(one)
    return (time.process_time() - began_s) / _EVENTS * 1e6


def main() -> None:
    rounds = [{mode: cost_us(mode) for mode in ("none", "text", "exact")} for _ in range(_ROUNDS)]
    for mode in rounds[0]:
        print(f"{mode:<6} {min(costs[mode] for costs in rounds):.2f} us")


if __name__ == "__main__":
    main()
