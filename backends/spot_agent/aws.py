"""AWS: the instance metadata service, version 2: a token first, then two things to look at."""

import asyncio
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Final

from backends.spot_agent.metadata import Answer, MetadataClient, MetadataError
from backends.spot_agent.notice import Notice, Reading
from backends.spot_agent.payloads import aws_instance_action, aws_rebalance
from backends.spot_agent.source import NoticeSource, Reader, Wall

TOKEN_PATH: Final = "/latest/api/token"  # noqa: S105 - a path
TTL_HEADER: Final = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN_HEADER: Final = "X-aws-ec2-metadata-token"  # noqa: S105 - a header's name
INSTANCE_ACTION: Final = "/latest/meta-data/spot/instance-action"
REBALANCE: Final = "/latest/meta-data/events/recommendations/rebalance"

TTL_S: Final = 21_600  # the longest there is
_RENEW_EARLY_S: Final = 300.0
_MAX_TOKEN: Final = 1024  # characters; theirs have 56
_INTERVAL_S: Final = 5.0  # what AWS asks for
_TIMEOUT_S: Final = 2.0  # it answers in milliseconds, from the machine itself


class AwsMetadata:
    """Asks with a token, and gets another one where that is refused or about to lapse."""

    def __init__(self, client: MetadataClient) -> None:
        self._client = client
        self._token = ""
        self._renew_s = 0.0  # loop time

    async def get(self, path: str) -> Answer:
        """Raises MetadataError."""
        if not self._token or asyncio.get_running_loop().time() >= self._renew_s:
            await self.authenticate()
        answer = await self._get(path)
        if answer.status == HTTPStatus.UNAUTHORIZED:
            await self.authenticate()
            answer = await self._get(path)
        return answer

    async def authenticate(self) -> None:
        """A new token; raises MetadataError."""
        self._token = ""
        try:
            answer = await self._client.put(TOKEN_PATH, headers={TTL_HEADER: str(TTL_S)}, timeout_s=_TIMEOUT_S)
        except MetadataError as error:
            raise MetadataError(
                f"{error} (in a container: is the metadata hop limit 2, or the network the host's?)"
            ) from None
        if answer.status != HTTPStatus.OK:
            raise MetadataError(f"no metadata token: PUT {TOKEN_PATH} answered {answer.status}; is the service on?")
        token = answer.body.strip()
        if not (0 < len(token) <= _MAX_TOKEN and token.isascii() and token.isprintable()):
            raise MetadataError(f"no metadata token: PUT {TOKEN_PATH} answered something else")
        said = answer.headers.get(TTL_HEADER.lower(), "")
        ttl_s = min(int(said), TTL_S) if said.isascii() and said.isdigit() and len(said) < 10 else TTL_S
        self._token = token
        self._renew_s = asyncio.get_running_loop().time() + ttl_s - min(_RENEW_EARLY_S, ttl_s / 2)

    async def _get(self, path: str) -> Answer:
        return await self._client.get(path, headers={TOKEN_HEADER: self._token}, timeout_s=_TIMEOUT_S)


class AwsSource:
    """One path that is 404 while there is nothing to say."""

    interval_s = _INTERVAL_S

    def __init__(
        self, metadata: AwsMetadata, path: str, parse: Callable[[str, float], Reading], wall: Wall, name: str
    ) -> None:
        self.name = name
        self._metadata = metadata
        self._path = path
        self._reader = Reader(parse, wall)

    async def look(self) -> Reading:
        answer = await self._metadata.get(self._path)
        if answer.status == HTTPStatus.NOT_FOUND:
            return self._reader.read(None)
        if answer.status != HTTPStatus.OK:
            raise MetadataError(f"{self._path} answered {answer.status}")
        return self._reader.read(answer.body)

    async def hasten(self, notices: Sequence[Notice]) -> None:
        """AWS waits for nobody."""


def aws_sources(client: MetadataClient, wall: Wall) -> list[NoticeSource]:
    metadata = AwsMetadata(client)
    return [
        AwsSource(metadata, INSTANCE_ACTION, aws_instance_action, wall, "aws instance-action"),
        AwsSource(metadata, REBALANCE, aws_rebalance, wall, "aws rebalance"),
    ]
