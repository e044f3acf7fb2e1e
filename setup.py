"""Metadata is in pyproject.toml. With PENSTOCK_COMPILED=1 the scheduler is compiled to machine code by mypyc (docs/compiled.md, `make wheel`).

What is compiled is what a placement passes through. Not the modules whose classes msgspec reads and writes, as it knows no compiled
classes, and nothing with asyncio, which gains little. Pure Python is what everything else runs, and what all tests but one run on.
"""

import os
from pathlib import Path

from setuptools import Extension, setup

COMPILED = (
    "admission arrears audit backlog blocks capacity column_placement columns crowd decision_record dispatching drain estimators "
    "filling fleet hedging holding joined kinds kv_audit kv_belief kv_chunks kv_forecast lane lazy_heap leaving ledger life_table live_replica "
    "meter offer outlook overload pace placement prefix_belief prefix_index promises queue replica request retry_budget scheduler seen "
    "shelf step_prior strain ticket watched_load window"
)


def extensions() -> list[Extension]:
    if os.environ.get("PENSTOCK_COMPILED") != "1":  # noqa: TID251 - a build has no config
        return []
    from mypyc.build import mypycify  # noqa: PLC0415 - only here is it needed

    paths = [str(Path("batching", name).with_suffix(".py")) for name in COMPILED.split()]
    return mypycify(["--config-file=pyproject.toml", "--follow-imports=silent", *paths], opt_level="2")


if __name__ == "__main__":
    setup(ext_modules=extensions())
