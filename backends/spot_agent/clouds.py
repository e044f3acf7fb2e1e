"""Which cloud this machine is in, and what there is to look at."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from backends.spot_agent.aws import AwsMetadata, aws_sources
from backends.spot_agent.azure import azure_sources, machine_name
from backends.spot_agent.gcp import FLAVOR, gcp_sources, is_google
from backends.spot_agent.metadata import GCP_HOST, LINK_LOCAL, MetadataClient, MetadataError
from backends.spot_agent.notice import Provider
from backends.spot_agent.source import NoticeSource, Wall

_PATIENCE_S: Final = 3.0  # for each question: what is there answers in milliseconds

_SOURCES: Final[dict[Provider, Callable[[MetadataClient, Wall], list[NoticeSource]]]] = {
    Provider.AWS: aws_sources,
    Provider.GCP: gcp_sources,
    Provider.AZURE: azure_sources,
}


class NoCloudError(Exception):
    """No metadata service answered; the message says what was tried and what to do."""


def metadata_url(provider: Provider) -> str:
    return GCP_HOST if provider is Provider.GCP else LINK_LOCAL


def sources(provider: Provider, client: MetadataClient, wall: Wall) -> list[NoticeSource]:
    return _SOURCES[provider](client, wall)


async def detect(url: str | None = None) -> Provider:
    """Asks all three at once; raises NoCloudError. `url`: where to ask instead of each cloud's own address.

    Each question is one that no other cloud's service answers rightly.
    """
    asked = await asyncio.gather(*(_problem(provider, url or metadata_url(provider)) for provider in Provider))
    problems = dict(zip(Provider, asked, strict=True))
    for provider, problem in problems.items():
        if problem is None:
            return provider
    tried = "; ".join(f"{provider}: {problem}" for provider, problem in problems.items())
    raise NoCloudError(
        f"no cloud's metadata service answers ({tried}). Is this a machine of one of them? "
        "In a container, give it the host's network, or on AWS a metadata hop limit of 2; name the cloud with --provider to wait for its service."
    )


async def _problem(provider: Provider, url: str) -> str | None:
    """Why it is not this one; None: it is."""
    try:
        async with asyncio.timeout(_PATIENCE_S), MetadataClient(url) as client:
            match provider:
                case Provider.AWS:
                    await AwsMetadata(client).authenticate()
                case Provider.GCP:
                    answer = await client.get("/computeMetadata/v1/", headers=FLAVOR, timeout_s=_PATIENCE_S)
                    if answer.status != HTTPStatus.OK or not is_google(answer):
                        return "answered, but not as Google's"
                case Provider.AZURE:
                    await machine_name(client, _PATIENCE_S)
    except MetadataError as error:
        return str(error)
    except TimeoutError:
        return "no answer"
    return None
