"""`penstock serve`, which also writes down what its scheduler learns of each engine: a line of JSON half a second apart.

By the lines' times and the CPU time in them one can tell a loop that is held up by work from one that gets no core.

The same gateway, server and front door; learned factors are in no metric, and a benchmark wants to see them settle.
"""

import argparse
import asyncio
import json
import logging
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final

from config.load import load
from config.schema import Config
from router.gateway import Gateway
from router.server import PenstockServer, bind

EVERY_S: Final = 0.5


class TellingGateway(Gateway):
    """Appends to `learned` while it runs."""

    def __init__(self, config: Config, *, version: str, learned: Path) -> None:
        super().__init__(config, version=version)
        self._learned = learned

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with super().running(), asyncio.TaskGroup() as tasks:
            telling = tasks.create_task(self._tell())
            yield
            telling.cancel()

    async def _tell(self) -> None:
        loop = asyncio.get_running_loop()
        with self._learned.open("a", encoding="utf-8", buffering=1) as out:
            while True:
                now = loop.time()
                states = {str(state.profile.id): dict(state.extras) for state in self.scheduler.states(now)}
                line = {"at_s": now, "cpu_s": time.process_time(), "placed": self._placed(), "replicas": states}
                out.write(json.dumps(line) + "\n")
                await asyncio.sleep(EVERY_S)

    def _placed(self) -> int:
        families = self.metrics.routing_decisions_total.collect()
        return int(sum(s.value for family in families for s in family.samples if s.name.endswith("_total")))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real.gateway", description=__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--learned", type=Path, required=True, metavar="OUT", help="JSON lines")
    said = parser.parse_args()
    config = load(said.config)
    logging.basicConfig(level=config.log_level.upper(), stream=sys.stderr)
    listener = bind(config.server.host, config.server.port)
    gateway = TellingGateway(config, version=version("penstock"), learned=said.learned)
    PenstockServer(gateway, listener, version("penstock"), None).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
