"""An engine over HTTP with a prefix cache that tells its events: the few paths that the gateway asks, tokens of four characters."""

import json
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from zlib import crc32

import uvicorn
import zmq.asyncio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from router.server import bind
from tests.support.kv_publisher import Publisher, cleared, publishing, removed, stored
from tests.support.servers import in_this_loop

BLOCK = 16
MODEL = "m"


class KvEngine:
    """Keeps `blocks` blocks, the least recently used go first, and of a prompt the deepest."""

    def __init__(self, publisher: Publisher, blocks: int) -> None:
        self.publisher = publisher
        self.url = ""
        self.asked: list[dict[str, Any]] = []  # of /tokenize
        self.tokenize_status = 200
        self.more_tokens = 0  # that /tokenize tells beyond what the endpoints read
        self.fails = False  # requests end with a 400
        self._blocks = blocks
        self._cache: OrderedDict[tuple[int, ...], None] = OrderedDict()
        self.app = Starlette(
            routes=[
                Route("/health", lambda _: Response()),
                Route("/v1/models", lambda _: JSONResponse({"data": [{"id": MODEL, "max_model_len": 8192}]})),
                Route("/v1/chat/completions", self._answer, methods=["POST"]),
                Route("/v1/completions", self._answer, methods=["POST"]),
                Route("/tokenize", self._tokenize, methods=["POST"]),
            ]
        )

    async def run(self, body: dict[str, Any]) -> int:
        """Reads a prompt, as for anybody's request; how many of its tokens were cached."""
        tokens = tokens_of(body)
        blocks = [tuple(tokens[:end]) for end in range(BLOCK, len(tokens) + 1, BLOCK)]
        hits = next((n for n, block in enumerate(blocks) if block not in self._cache), len(blocks))
        events: list[Any] = []
        for block in reversed(blocks):
            self._cache[block] = None
            self._cache.move_to_end(block)
        while len(self._cache) > self._blocks:
            events.append(removed(hash(self._cache.popitem(last=False)[0])))
        if hits < len(blocks):
            parent = hash(blocks[hits - 1]) if hits else None
            new = tokens[hits * BLOCK : len(blocks) * BLOCK]
            events.append(stored([hash(b) for b in blocks[hits:]], new, parent=parent, block_size=BLOCK))
        if events:
            await self.publisher.publish(*events)
        return hits * BLOCK

    async def clear(self) -> None:
        self._cache.clear()
        await self.publisher.publish(cleared())

    async def _answer(self, request: Request) -> Response:
        body = json.loads(await request.body())
        if self.fails:
            return JSONResponse({"error": {"message": "no", "type": "BadRequestError"}}, 400)
        cached = await self.run(body)
        prompt_tokens = len(tokens_of(body))
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": 1, "total_tokens": prompt_tokens + 1,
                 "prompt_tokens_details": {"cached_tokens": cached}}  # fmt: skip
        choice = {"index": 0, "finish_reason": "stop", "text": "x", "message": {"role": "assistant", "content": "x"}}
        return JSONResponse({"id": "1", "model": MODEL, "created": 1, "choices": [choice], "usage": usage})

    async def _tokenize(self, request: Request) -> Response:
        body = json.loads(await request.body())
        self.asked.append(body)
        tokens = tokens_of(body) + [0] * self.more_tokens
        return JSONResponse({"count": len(tokens), "tokens": tokens}, self.tokenize_status)


def tokens_of(body: dict[str, Any]) -> list[int]:
    """A chat's template puts a token before each message; prompts of ids are themselves."""
    if isinstance(body.get("prompt"), list):
        return list(body["prompt"])
    texts = [body["prompt"]] if "prompt" in body else [f"[{m['role'][:2]}]{m['content']}" for m in body["messages"]]
    return [crc32(text[i : i + 4].encode()) for text in texts for i in range(0, len(text), 4)]


@asynccontextmanager
async def kv_engine(context: zmq.asyncio.Context, blocks: int = 64) -> AsyncIterator[KvEngine]:
    """Serving on a free port of its own."""
    async with publishing(context) as publisher:
        engine = KvEngine(publisher, blocks)
        listener = bind("127.0.0.1", 0)
        engine.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(engine.app, log_config=None, access_log=False, lifespan="off"))
        async with in_this_loop(server, listener):
            yield engine


def replica_of(engine: KvEngine, **more: Any) -> dict[str, Any]:
    """A replica entry that listens to it."""
    events = {"endpoint": engine.publisher.endpoint, "replay_endpoint": engine.publisher.replay_endpoint}
    return {"name": "r", "backend": "vllm", "url": engine.url, "kv_events": events, **more}
