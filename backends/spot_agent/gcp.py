"""GCP: two values of the metadata server, each asked for once and then waited for in a long GET."""

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Final

from backends.spot_agent.metadata import Answer, MetadataClient, MetadataError
from backends.spot_agent.notice import Notice, Reading
from backends.spot_agent.payloads import gcp_maintenance, gcp_preempted
from backends.spot_agent.source import NoticeSource, Reader, Wall

FLAVOR: Final = {"Metadata-Flavor": "Google"}
PREEMPTED: Final = "/computeMetadata/v1/instance/preempted"
MAINTENANCE: Final = "/computeMetadata/v1/instance/maintenance-event"

_WAIT_S: Final = 60  # of one GET; shorter than what middle boxes let lie idle
_GRACE_S: Final = 15.0  # for the answer, after that
_TIMEOUT_S: Final = 5.0
# A change between two GETs is not lost: the second one's etag is old, and it is answered at once. Where there are no etags this is the
# interval of plain polling.
_INTERVAL_S: Final = 1.0


class GcpSource:
    """One value. The first GET asks what it is, each later one waits until it is no longer that."""

    interval_s = _INTERVAL_S

    def __init__(
        self, client: MetadataClient, path: str, parse: Callable[[str, float], Reading], wall: Wall, name: str
    ) -> None:
        self.name = name
        self._client = client
        self._path = path
        self._reader = Reader(parse, wall)
        self._etag: str | None = None

    async def look(self) -> Reading:
        etag, self._etag = self._etag, None  # after whatever goes wrong the value is asked for anew
        if etag is None:
            answer = await self._get({}, _TIMEOUT_S)
        else:
            query = {"wait_for_change": "true", "timeout_sec": str(_WAIT_S), "last_etag": etag}
            answer = await self._get(query, _WAIT_S + _GRACE_S)
        if answer.status != HTTPStatus.OK:
            raise MetadataError(f"{self._path} answered {answer.status}")
        if not is_google(answer):
            raise MetadataError(f"{self._path}: the answer lacks Metadata-Flavor, so it is not the metadata server's")
        reading = self._reader.read(answer.body)
        self._etag = answer.headers.get("etag")
        return reading

    async def hasten(self, notices: Sequence[Notice]) -> None:
        """GCP waits for nobody."""

    async def _get(self, query: Mapping[str, str], timeout_s: float) -> Answer:
        return await self._client.get(self._path, headers=FLAVOR, query=query, timeout_s=timeout_s)


def is_google(answer: Answer) -> bool:
    return answer.headers.get("metadata-flavor") == "Google"


def gcp_sources(client: MetadataClient, wall: Wall) -> list[NoticeSource]:
    return [
        GcpSource(client, PREEMPTED, gcp_preempted, wall, "gcp preempted"),
        GcpSource(client, MAINTENANCE, gcp_maintenance, wall, "gcp maintenance-event"),
    ]
