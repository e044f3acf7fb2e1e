"""The agent as a process: its log, its signals, its exit code."""

import asyncio
import logging
import signal
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from backends.spot_agent.admin_client import AdminClient
from backends.spot_agent.agent import Agent
from backends.spot_agent.clouds import NoCloudError, detect, metadata_url, sources
from backends.spot_agent.metadata import MetadataClient
from backends.spot_agent.notice import Provider
from backends.spot_agent.source import Wall

log = logging.getLogger("penstock.spot_agent")

EXIT_NO_CLOUD: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOptions:
    gateways: Sequence[str]  # URLs without a path
    replica: str
    provider: Provider | None = None  # None: whichever answers
    key: str | None = None
    metadata_url: str | None = None  # None: the cloud's own
    exit_on_release: bool = False


def run(options: AgentOptions, wall: Wall) -> int:
    """Until a signal, or until released if so asked; returns the exit code (1: there is no cloud to listen to)."""
    _configure_logging()
    return asyncio.run(_run(options, wall))


async def _run(options: AgentOptions, wall: Wall) -> int:
    loop = asyncio.get_running_loop()
    this = asyncio.current_task()
    assert this is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, this.cancel)
    try:
        await _watch(options, wall)
    except NoCloudError as error:
        log.error("%s", error)  # noqa: TRY400 - a message for the operator, who has no use for a traceback
        return EXIT_NO_CLOUD
    except asyncio.CancelledError:
        log.info("stopped")
    return 0


async def _watch(options: AgentOptions, wall: Wall) -> None:
    provider = options.provider or await detect(options.metadata_url)
    where = options.metadata_url or metadata_url(provider)
    log.info("replica %s: listening to %s at %s", options.replica, provider, where)
    async with AsyncExitStack() as clients:
        metadata = await clients.enter_async_context(MetadataClient(where))
        gateways = [
            await clients.enter_async_context(AdminClient(url, options.key)) for url in dict.fromkeys(options.gateways)
        ]
        agent = Agent(sources(provider, metadata, wall), gateways, replica=options.replica, wall=wall)
        await agent.run(until_released=options.exit_on_release)


def _configure_logging() -> None:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)-7s %(name)s %(message)s"
    )
    for noisy in ("httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
