"""The sources under virtual time: tokens, long GETs, slow first answers, failures; each against a scripted service."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from itertools import pairwise
from typing import Any

import httpx
import pytest

from backends.spot_agent.aws import aws_sources
from backends.spot_agent.azure import AzureSource
from backends.spot_agent.gcp import gcp_sources
from backends.spot_agent.metadata import MetadataClient, MetadataError
from backends.spot_agent.notice import Kind, Notice
from backends.spot_agent.source import NoticeSource, standing
from tests.support.virtual_time import run_virtual

Service = Callable[[httpx.Request], Awaitable[httpx.Response]]
TERMINATE = '{"action": "terminate", "time": "2030-01-01T00:02:00Z"}'
_EPOCH_S = 1_000_000.0


class Scripted(httpx.AsyncBaseTransport):
    """Remembers (seconds, method, path and query) of each request."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.asked: list[tuple[float, str, str]] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        where = request.url.raw_path.decode()
        self.asked.append((asyncio.get_running_loop().time(), request.method, where))
        return await self.service(request)

    def times(self, part: str) -> list[float]:
        return [at_s for at_s, _, where in self.asked if part in where]


def wall() -> float:
    return _EPOCH_S + asyncio.get_running_loop().time()


async def looks(source: NoticeSource, count: int) -> list[tuple[Notice, ...]]:
    """What `count` looks found."""
    found = []
    async for notices in standing(source):
        found.append(notices)
        if len(found) == count:
            break
    return found


def with_service(service: Service, use: Callable[[MetadataClient, Scripted], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        transport = Scripted(service)
        async with MetadataClient("http://169.254.169.254", transport) as client:
            await use(client, transport)

    run_virtual(main())


class Aws:
    """Takes only the newest token."""

    def __init__(self, ttl_s: int = 21_600) -> None:
        self.tokens = 0
        self.ttl_s = ttl_s
        self.body: str | None = None

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "PUT":
            assert request.headers["X-aws-ec2-metadata-token-ttl-seconds"] == "21600"
            self.tokens += 1
            headers = {"X-Aws-Ec2-Metadata-Token-Ttl-Seconds": str(self.ttl_s)}
            return httpx.Response(200, text=f"t{self.tokens}", headers=headers)
        if request.headers["X-aws-ec2-metadata-token"] != f"t{self.tokens}":
            return httpx.Response(401)
        return httpx.Response(404) if self.body is None else httpx.Response(200, text=self.body)


def test_aws_is_asked_every_five_seconds_with_one_token():
    """404 is nothing; the token serves until it is about to lapse."""
    service = Aws(ttl_s=600)

    async def use(client: MetadataClient, transport: Scripted) -> None:
        source = aws_sources(client, wall)[0]
        assert await looks(source, 3) == [(), (), ()]
        assert transport.times("instance-action") == [0.0, 5.0, 10.0]
        assert service.tokens == 1
        await looks(source, 70)
        assert service.tokens == 2

    with_service(service, use)


def test_a_refused_token_is_replaced_at_once():
    """401 costs one more question, not one interval."""
    service = Aws()

    async def use(client: MetadataClient, transport: Scripted) -> None:
        source = aws_sources(client, wall)[0]
        await looks(source, 1)
        service.tokens = 7
        service.body = TERMINATE
        assert [notice.kind for notice in (await looks(source, 1))[0]] == [Kind.RECLAIM]
        assert service.tokens == 8

    with_service(service, use)


def test_what_was_first_seen_then_stays_so():
    """The same payload is the same notice; a withdrawn one that comes back is seen anew."""
    service = Aws()
    service.body = '{"action": "hibernate"}'

    async def use(client: MetadataClient, transport: Scripted) -> None:
        source = aws_sources(client, wall)[0]
        first, second = await looks(source, 2)
        assert first == second != ()
        service.body = None
        assert await looks(source, 1) == [()]
        service.body = '{"action": "hibernate"}'
        ((again,),) = await looks(source, 1)
        assert again.observed_unix_s > first[0].observed_unix_s

    with_service(service, use)


@pytest.mark.parametrize(
    "bad",
    [
        httpx.Response(500),
        httpx.Response(200, text="<html>"),
        httpx.Response(302, headers={"location": "http://elsewhere/"}),
        httpx.Response(200, content=b"x" * 1_000_000),
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("slow"),
    ],
)
def test_a_failed_look_changes_nothing_and_is_logged_once(
    bad: httpx.Response | Exception, caplog: pytest.LogCaptureFixture
):
    """It is tried again within seconds; what stood still stands meanwhile, since no look has ended."""
    service = Aws()
    failures = 0

    async def flaky(request: httpx.Request) -> httpx.Response:
        nonlocal failures
        if request.method == "GET" and failures < 9:
            failures += 1
            if isinstance(bad, Exception):
                raise bad
            return httpx.Response(bad.status_code, content=bad.content, headers=bad.headers)
        return await service(request)

    async def use(client: MetadataClient, transport: Scripted) -> None:
        service.body = TERMINATE
        assert len((await looks(aws_sources(client, wall)[0], 1))[0]) == 1
        asked = transport.times("instance-action")
        assert len(asked) == 10
        assert max(after - before for before, after in pairwise(asked)) <= 5.0
        assert not any("elsewhere" in where for _, _, where in transport.asked)

    with caplog.at_level(logging.INFO, "penstock.spot_agent"):
        with_service(flaky, use)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


@pytest.mark.parametrize("answer", [(403, "no"), (200, ""), (200, "a\nb"), (200, "é"), (200, "x" * 5000)])
def test_a_token_that_is_none_is_a_metadata_error(answer: tuple[int, str]):
    """And never sent on as a header."""

    async def service(request: httpx.Request) -> httpx.Response:
        assert request.method == "PUT"
        return httpx.Response(answer[0], text=answer[1])

    async def use(client: MetadataClient, transport: Scripted) -> None:
        with pytest.raises(MetadataError, match="no metadata token"):
            await aws_sources(client, wall)[0].look()

    with_service(service, use)


class Gcp:
    """One value; a long GET with the present etag waits for the next."""

    def __init__(self) -> None:
        self.value, self.etag = "FALSE", 0
        self.changed = asyncio.Event()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["Metadata-Flavor"] == "Google"
        if request.url.params.get("last_etag") == str(self.etag):
            try:
                async with asyncio.timeout(float(request.url.params["timeout_sec"])):
                    await self.changed.wait()
            except TimeoutError:
                pass
        return httpx.Response(200, text=self.value, headers={"ETag": str(self.etag), "Metadata-Flavor": "Google"})


def test_gcp_is_asked_once_and_then_waited_for():
    """The first GET does not wait, so that what is so already is seen; the later ones carry the etag and hang for a minute."""
    service = Gcp()

    async def use(client: MetadataClient, transport: Scripted) -> None:
        await looks(gcp_sources(client, wall)[0], 3)
        assert [(at_s, where.partition("?")[2]) for at_s, _, where in transport.asked] == [
            (0.0, ""),
            (1.0, "wait_for_change=true&timeout_sec=60&last_etag=0"),
            (62.0, "wait_for_change=true&timeout_sec=60&last_etag=0"),
        ]

    with_service(service, use)


def test_gcp_tells_a_change_at_once():
    """In the middle of a long GET, not at its end; also one that came between two of them."""
    service = Gcp()

    async def use(client: MetadataClient, transport: Scripted) -> None:
        loop = asyncio.get_running_loop()

        def preempt() -> None:
            service.value, service.etag = "TRUE", 1
            service.changed.set()

        loop.call_later(20.25, preempt)
        _, found = await looks(gcp_sources(client, wall)[0], 2)
        assert loop.time() == pytest.approx(20.25)
        assert found[0].deadline_unix_s == pytest.approx(_EPOCH_S + 50.25)

    with_service(service, use)


def test_gcp_after_a_failure_asks_anew():
    """An etag that outlived its server must not hide what is so now."""
    service = Gcp()

    async def flaky(request: httpx.Request) -> httpx.Response:
        if "last_etag" in request.url.params and service.etag == 0:
            service.etag = 5
            return httpx.Response(503, headers={"Metadata-Flavor": "Google"})
        return await service(request)

    async def use(client: MetadataClient, transport: Scripted) -> None:
        await looks(gcp_sources(client, wall)[0], 2)
        assert ["last_etag" in where for _, _, where in transport.asked] == [False, True, False]

    with_service(flaky, use)


def test_an_answer_without_googles_header_is_not_gcps():
    """A captive portal that says TRUE takes no machine away."""

    async def service(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text="TRUE")

    async def use(client: MetadataClient, transport: Scripted) -> None:
        with pytest.raises(MetadataError, match="Metadata-Flavor"):
            await gcp_sources(client, wall)[0].look()

    with_service(service, use)


def test_azures_first_answer_may_take_two_minutes_and_no_later_one():
    """The service is switched on by the first call; then it is asked every second."""
    slow = True

    async def service(request: httpx.Request) -> httpx.Response:
        assert request.headers["Metadata"] == "true"
        if request.url.path.endswith("/name"):
            return httpx.Response(200, text="vm_1")
        await asyncio.sleep(120 if slow else 0)
        return httpx.Response(200, text='{"Events": []}')

    async def use(client: MetadataClient, transport: Scripted) -> None:
        nonlocal slow
        source = AzureSource(client, wall)
        await looks(source, 1)
        assert transport.times("scheduledevents") == [0.0]
        with pytest.raises(MetadataError, match="no answer within 10 s"):
            await source.look()
        slow = False
        await looks(source, 3)
        times = transport.times("scheduledevents")[-3:]
        assert [times[1] - times[0], times[2] - times[1]] == [1.0, 1.0]
        assert len(transport.times("/name")) == 1

    with_service(service, use)
