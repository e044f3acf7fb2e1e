"""What a request's trace and its log line cost: `python -m benchmarks.telling`. CPU microseconds a request, the least of some rounds.

The whole gateway in virtual time, over an engine that answers at once, with traces off, on but not sampled, and sampled; then, of one such
request, what each part of the telling takes: building its spans on the loop, writing them as OTLP in the export thread, a line.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from config.tracing import Tracing
from router.exchange import Exchange
from router.logs import JsonFormatter, TextFormatter
from router.request_log import RequestLog
from router.tracing.export import resource_of
from router.tracing.otlp import request
from router.tracing.spans import spans_of
from tests.support.asgi import chat, post
from tests.support.fake_engine import FakeEngine, Script, whole_stream
from tests.support.gateways import fake_config, gateway_over
from tests.support.sdk_spans import sdk_spans
from tests.support.traces import KeptTraces
from tests.support.virtual_time import run_virtual

_REQUESTS: Final = 1000
_ROUNDS: Final = 7
_INNER: Final = 2000
_TOKENS: Final = 8
_CHAT: Final = "/v1/chat/completions"


class _Counted(KeptTraces):
    def add(self, finished: object) -> None:
        """Only what the loop does is of interest."""


def whole_us(**tracing: object) -> float:
    """Of one request, everything of the gateway included."""

    async def main() -> float:
        engine = FakeEngine(default=lambda: Script(whole_stream(_TOKENS)))
        config = fake_config(
            {"a": engine}, tracing=tracing, log_level="warning", scheduling={"hedge": {"enabled": False}}
        )
        async with gateway_over({"a": engine}, config, span_sink=_Counted()) as running:
            body = chat(stream=True, max_tokens=20)
            for _ in range(100):
                await post(running.app, _CHAT, body).run()
            began_s = time.process_time()
            for _ in range(_REQUESTS):
                await post(running.app, _CHAT, body).run()
            engine.calls.clear()
            return (time.process_time() - began_s) / _REQUESTS * 1e6

    return run_virtual(main())


def least_us(step: Callable[[], object]) -> float:
    samples = []
    for _ in range(_ROUNDS):
        began_s = time.thread_time()
        for _ in range(_INNER):
            step()
        samples.append((time.thread_time() - began_s) / _INNER)
    return min(samples) * 1e6


def parts() -> dict[str, float]:
    """What is told of one request, piece by piece."""
    found: list[Exchange] = []

    async def main() -> KeptTraces:
        engine = FakeEngine(Script(whole_stream(_TOKENS)))
        config = fake_config({"a": engine}, tracing={"enabled": True})
        async with gateway_over({"a": engine}, config, span_sink=(kept := KeptTraces())) as running:
            attempted = running.gateway.kv_watch
            assert attempted is not None
            attempted.attempted = found.append  # type: ignore[method-assign]
            await post(running.app, _CHAT, chat(stream=True, max_tokens=20, temperature=0.7)).run()
            await asyncio.sleep(1)
        return kept

    kept = run_virtual(main())
    exchange = found[0]
    settings = Tracing(enabled=True)
    resource = resource_of(settings, "0", workers=1)
    lines = RequestLog(lambda _replica: "H100-80G", lambda name: name)
    record = logging.LogRecord("penstock.request", logging.INFO, "f", 1, "request", (), None)
    record.fields = lines._fields(exchange, "m", "default", 200)
    text, as_json = TextFormatter(), JsonFormatter()
    finished = kept.finished[0]
    sdk = sdk_spans(finished)
    return {
        f"{len(finished.spans)} spans, on the loop": least_us(lambda: spans_of(exchange, {}, lambda name: name)),
        "as OTLP, in the thread": least_us(lambda: request([finished], resource, ("penstock", "0"))),
        "(by the SDK's encoder)": least_us(lambda: encode_spans(sdk).SerializeToString()),
        "a line's fields": least_us(lambda: lines._fields(exchange, "m", "default", 200)),
        "... as text": least_us(lambda: text.format(record)),
        "... as JSON": least_us(lambda: as_json.format(record)),
    }


def main() -> None:
    logging.disable(logging.INFO)
    ways = {"off": {}, "on, not sampled": {"enabled": True, "sample_ratio": 0}, "on, sampled": {"enabled": True}}
    rounds = [{name: whole_us(**settings) for name, settings in ways.items()} for _ in range(_ROUNDS)]
    for name in ways:
        print(f"{'traces ' + name:<28}{min(costs[name] for costs in rounds):8.1f} us a request")
    for name, cost in parts().items():
        print(f"{name:<28}{cost:8.1f} us")


if __name__ == "__main__":
    main()
