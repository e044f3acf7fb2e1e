"""Azure: Scheduled Events, looked at every second, filtered by this machine's name, and answered once it is empty."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Final

from backends.spot_agent.metadata import MetadataClient, MetadataError
from backends.spot_agent.notice import Notice, Reading
from backends.spot_agent.payloads import azure_events, azure_start_requests
from backends.spot_agent.source import NoticeSource, Reader, Wall

HEADERS: Final = {"Metadata": "true"}
EVENTS: Final = "/metadata/scheduledevents"
EVENTS_QUERY: Final = {"api-version": "2020-07-01"}
NAME: Final = "/metadata/instance/compute/name"
NAME_QUERY: Final = {"api-version": "2021-02-01", "format": "text"}

_INTERVAL_S: Final = 1.0  # Azure's advice: a preemption is told 30 s ahead
_FIRST_TIMEOUT_S: Final = 150.0  # the first call switches the service on, which may take two minutes
_TIMEOUT_S: Final = 10.0
_MAX_NAME: Final = 256  # characters; the longest allowed has 64


class AzureSource:
    """The events that name this machine."""

    name = "azure scheduled-events"
    interval_s = _INTERVAL_S

    def __init__(self, client: MetadataClient, wall: Wall) -> None:
        self._client = client
        self._machine = ""
        self._reader = Reader(self._parse, wall)
        self._events_timeout_s = _FIRST_TIMEOUT_S

    async def look(self) -> Reading:
        if not self._machine:
            self._machine = await machine_name(self._client)
        answer = await self._client.get(EVENTS, headers=HEADERS, query=EVENTS_QUERY, timeout_s=self._events_timeout_s)
        if answer.status != HTTPStatus.OK:
            raise MetadataError(f"{EVENTS} answered {answer.status}")
        reading = self._reader.read(answer.body)
        self._events_timeout_s = _TIMEOUT_S
        return reading

    async def hasten(self, notices: Sequence[Notice]) -> None:
        """Lets the events begin now; of those that name other machines, too, none: they may not be ready."""
        ids = [notice.id for notice in notices if notice.may_hasten]
        if not ids:
            return
        answer = await self._client.post(
            EVENTS, headers=HEADERS, query=EVENTS_QUERY, timeout_s=_TIMEOUT_S, body=azure_start_requests(ids)
        )
        if answer.status != HTTPStatus.OK:
            raise MetadataError(f"POST {EVENTS} answered {answer.status}")

    def _parse(self, body: str, observed_unix_s: float) -> Reading:
        return azure_events(body, observed_unix_s, machine=self._machine)


async def machine_name(client: MetadataClient, timeout_s: float = _TIMEOUT_S) -> str:
    """As events name it; raises MetadataError."""
    answer = await client.get(NAME, headers=HEADERS, query=NAME_QUERY, timeout_s=timeout_s)
    name = answer.body.strip()
    if answer.status != HTTPStatus.OK or not 0 < len(name) <= _MAX_NAME or not name.isprintable():
        raise MetadataError(f"{NAME} answered {answer.status} and no name")
    return name


def azure_sources(client: MetadataClient, wall: Wall) -> list[NoticeSource]:
    return [AzureSource(client, wall)]
