"""A metadata service that replays a script: each cloud's own paths, headers, tokens and long GETs, and the ways in which they fail.

A test changes what stands (`interrupt`, `preempt`, `schedule`, ...) while an agent listens, or queues `troubles` for the next requests.
By hand, for a whole agent on a desk: `python -m tests.support.fake_imds aws --after 10` prints its URL, for --metadata-url.
"""

import argparse
import asyncio
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from tests.support.loopback_http import Asked, LoopbackServer, Says
from tests.support.patience import PATIENCE_S

AWS_TOKEN = "/latest/api/token"
AWS_ACTION = "/latest/meta-data/spot/instance-action"
AWS_REBALANCE = "/latest/meta-data/events/recommendations/rebalance"
GCP_ROOT = "/computeMetadata/v1/"
GCP_PREEMPTED = "/computeMetadata/v1/instance/preempted"
GCP_MAINTENANCE = "/computeMetadata/v1/instance/maintenance-event"
AZURE_EVENTS = "/metadata/scheduledevents"
AZURE_NAME = "/metadata/instance/compute/name"
AZURE_MACHINE = "gpu-spot_7"

_GOOGLE = {"Metadata-Flavor": "Google"}


class Trouble:
    """What the next request to a path gets instead: a status, bytes as a 200, or a cut connection."""

    def __init__(self, *, status: int = 200, body: bytes = b"", location: str = "", cut: bool = False) -> None:
        headers = {"location": location} if location else {}
        self.answer = None if cut else Says(status, body, headers)


class FakeImds(LoopbackServer):
    """Of one cloud: aws, gcp or azure; the other clouds' paths are 404, as on a real machine."""

    def __init__(self, cloud: str, *, token_ttl_s: int = 21_600) -> None:
        super().__init__(self._answer)
        self.asked: list[Asked] = []
        self.troubles: dict[str, list[Trouble]] = {}
        self.changed = asyncio.Condition()  # of what stands and of what was asked
        self.hold_events: asyncio.Event | None = None  # Azure's first answer: not before this is set
        self.started_events: list[str] = []  # acknowledged by StartRequests
        self._cloud = cloud
        self._token_ttl_s = token_ttl_s
        self._tokens: list[str] = []
        self._aws: dict[str, bytes] = {}
        self._gcp = {GCP_PREEMPTED: ("FALSE", 0), GCP_MAINTENANCE: ("NONE", 0)}
        self._events: list[Mapping[str, object]] = []
        self._incarnation = 1

    # What stands.

    def interrupt(self, action: str = "terminate", *, in_s: float = 120) -> None:
        """AWS: spot/instance-action."""
        self._aws[AWS_ACTION] = json.dumps({"action": action, "time": _iso(in_s)}).encode()

    def recommend_rebalance(self) -> None:
        self._aws[AWS_REBALANCE] = json.dumps({"noticeTime": _iso(0)}).encode()

    def withdraw(self) -> None:
        """AWS: 404 again."""
        self._aws.clear()

    def forget_tokens(self) -> None:
        """AWS: every token given so far is refused."""
        self._tokens.clear()

    @property
    def tokens_given(self) -> int:
        return sum(one.path == AWS_TOKEN for one in self.asked)

    async def set_value(self, path: str, value: str) -> None:
        """GCP: and wakes who waits for a change."""
        async with self.changed:
            self._gcp[path] = (value, self._gcp[path][1] + 1)
            self.changed.notify_all()

    async def preempt(self) -> None:
        await self.set_value(GCP_PREEMPTED, "TRUE")

    def schedule(
        self,
        event_type: str = "Preempt",
        *,
        event_id: str = "E1",
        in_s: float = 30,
        resources: tuple[str, ...] = (AZURE_MACHINE,),
        started: bool = False,
    ) -> None:
        """Azure: one more event; `started`: its NotBefore is blank."""
        self._incarnation += 1
        not_before = "" if started else format_datetime(_moment(in_s), usegmt=True)
        self._events.append({
            "EventId": event_id, "EventStatus": "Started" if started else "Scheduled", "EventType": event_type,
            "ResourceType": "VirtualMachine", "Resources": list(resources), "NotBefore": not_before,
            "Description": "", "EventSource": "Platform", "DurationInSeconds": -1,
        })  # fmt: skip

    def cancel_events(self) -> None:
        self._incarnation += 1
        self._events.clear()

    # What is asked.

    async def until_asked(self, path: str, *, times: int = 1) -> None:
        """Since the beginning."""
        async with asyncio.timeout(PATIENCE_S), self.changed:
            await self.changed.wait_for(lambda: sum(one.path == path for one in self.asked) >= times)

    async def _answer(self, asked: Asked) -> Says | None:
        async with self.changed:
            self.asked.append(asked)
            self.changed.notify_all()
        if queue := self.troubles.get(asked.path):
            return queue.pop(0).answer
        match self._cloud:
            case "aws":
                return self._as_aws(asked)
            case "gcp":
                return await self._as_gcp(asked)
            case _:
                return await self._as_azure(asked)

    def _as_aws(self, asked: Asked) -> Says:
        if asked.path == AWS_TOKEN:
            ttl = asked.headers.get("x-aws-ec2-metadata-token-ttl-seconds")
            if asked.method != "PUT" or ttl is None or not 1 <= int(ttl) <= 21_600:
                return Says(400)
            self._tokens.append(f"token-{len(self.asked)}==")
            return Says(
                body=self._tokens[-1].encode(),
                headers={"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": str(min(int(ttl), self._token_ttl_s))},
            )
        if asked.headers.get("x-aws-ec2-metadata-token") not in self._tokens:
            return Says(401)
        body = self._aws.get(asked.path)
        return Says(404, b"<html>Not Found</html>") if body is None else Says(body=body)

    async def _as_gcp(self, asked: Asked) -> Says:
        if asked.headers.get("metadata-flavor") != "Google":
            return Says(403)
        if asked.path == GCP_ROOT:
            return Says(body=b"instance/\n", headers=_GOOGLE)
        if asked.path not in self._gcp:
            return Says(404, headers=_GOOGLE)
        if asked.query.get("wait_for_change") == "true":
            last = asked.query.get("last_etag", str(self._gcp[asked.path][1]))
            async with self.changed:
                try:
                    async with asyncio.timeout(float(asked.query.get("timeout_sec", "3600"))):
                        await self.changed.wait_for(lambda: str(self._gcp[asked.path][1]) != last)
                except TimeoutError:
                    pass
        value, etag = self._gcp[asked.path]
        return Says(body=value.encode(), headers={**_GOOGLE, "ETag": str(etag)})

    async def _as_azure(self, asked: Asked) -> Says:
        if asked.headers.get("metadata") != "true" or "x-forwarded-for" in asked.headers:
            return Says(400)
        if asked.path == AZURE_NAME and asked.query.get("format") == "text":
            return Says(body=AZURE_MACHINE.encode())
        if asked.path != AZURE_EVENTS or asked.query.get("api-version") != "2020-07-01":
            return Says(404)
        if asked.method == "POST":
            ids = [one["EventId"] for one in json.loads(asked.body)["StartRequests"]]
            self.started_events += ids
            return Says()
        if self.hold_events is not None:
            await self.hold_events.wait()
        return Says(body=json.dumps({"DocumentIncarnation": self._incarnation, "Events": self._events}).encode())


def _moment(in_s: float) -> datetime:
    return datetime.now(UTC) + timedelta(seconds=in_s)


def _iso(in_s: float) -> str:
    return _moment(in_s).strftime("%Y-%m-%dT%H:%M:%SZ")


async def _by_hand(cloud: str, after_s: float, withdrawn_s: float | None) -> None:
    async with FakeImds(cloud) as imds:
        print(imds.url, flush=True)
        await asyncio.sleep(after_s)
        imds.interrupt()
        imds.schedule()
        await imds.preempt()
        print("notice", flush=True)
        if withdrawn_s is not None:
            await asyncio.sleep(withdrawn_s)
            imds.withdraw()
            imds.cancel_events()
            await imds.set_value(GCP_PREEMPTED, "FALSE")
            print("withdrawn", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    flags = argparse.ArgumentParser(description="A fake metadata service that gives one notice.")
    flags.add_argument("cloud", choices=("aws", "gcp", "azure"))
    flags.add_argument("--after", type=float, default=10.0, help="seconds until the notice")
    flags.add_argument("--withdrawn", type=float, help="seconds after which it is taken back")
    given = flags.parse_args()
    asyncio.run(_by_hand(given.cloud, given.after, given.withdrawn))
