"""Metadata is in pyproject.toml. With PENSTOCK_COMPILED=1 the hot path is compiled to machine code by mypyc (docs/compiled.md, `make wheel`).

What is compiled is what a placement and a token pass through. Not the modules whose classes msgspec reads and writes, as it knows no
compiled classes, and none whose coroutines wait in an `except` or a `finally`, as `router.dispatch`, `router.attempt` and the like do: mypyc
looks there for the exception at hand in a place where another coroutine's may be. `tests/unit/test_packaging.py` holds what is known of
such traps. Pure Python is what everything else runs, and nearly all tests.
"""

import os

from setuptools import Extension, setup

COMPILED = {
    "backends": "alarms breaker progress vllm",
    "backends/upstream": "connection pool response sse",
    "batching": (
        "admission arrears audit backlog blocks capacity column_placement columns crowd decision_record decisions dispatching drain "
        "estimators filling fleet hedging holding joined kinds kv_audit kv_belief kv_chunks kv_forecast lane lazy_heap leaving ledger "
        "lessons life_table live_replica meter offer outlook overload pace placement prefix_belief prefix_index promises queue replica "
        "request retry_budget scheduler seen shelf step_prior strain ticket watched_load window"
    ),
    "metrics": "count handles histogram overhead timeline",
    "router": "admission asgi_client calls client collected exchange heard hot_cycle inbound relay report usage",
    "router/tracing": "content",  # its journal is one of those compiled ones
    "router/openai": "body checks chunks continuation events journal plain prompt repairs request stops usage",
}


def modules() -> list[str]:
    """Their files."""
    return [f"{folder}/{name}.py" for folder, names in COMPILED.items() for name in names.split()]


def extensions() -> list[Extension]:
    if os.environ.get("PENSTOCK_COMPILED") != "1":  # noqa: TID251 - a build has no config
        return []
    from mypyc.build import mypycify  # noqa: PLC0415 - only here is it needed

    flags = ["--config-file=pyproject.toml", "--follow-imports=silent"]
    # A C file for each module: in one file, which is the default, gcc takes three times as long and makes nothing faster of it.
    return mypycify([*flags, *modules()], opt_level="2", multi_file=True)


if __name__ == "__main__":
    setup(ext_modules=extensions())
