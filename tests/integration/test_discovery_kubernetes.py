"""The Kubernetes source over real sockets, against an API that lists by page, ends watches, forgets versions and goes away."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from backends.discovery.found import Found
from backends.discovery.kubernetes import KubernetesSource
from config.discovery import Kubernetes
from tests.support.conditions import until
from tests.support.fake_kubernetes import NODES, SLICES, FakeKubernetes, endpoint, endpoint_slice, node


class Heard:
    """What the source told, last first."""

    def __init__(self) -> None:
        self.all: list[Sequence[Found]] = []

    @property
    def names(self) -> list[str]:
        return [found.replica.name for found in self.all[-1]] if self.all else ["nothing yet"]

    async def until(self, *names: str) -> None:
        await until(lambda: self.names == list(names), lambda: (self.names, names))


@asynccontextmanager
async def listening(api: FakeKubernetes, **settings: Any) -> AsyncIterator[Heard]:
    heard = Heard()
    config = Kubernetes.model_validate({"service": "vllm", "namespace": "default", "api_url": api.url, **settings})
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(KubernetesSource(config).run(heard.all.append))
        yield heard
        task.cancel()


def some(*pods: str) -> dict[str, Any]:
    return endpoint_slice("vllm-a", "vllm", *(endpoint(f"10.0.0.{i}", pod, "n1") for i, pod in enumerate(pods, 1)))


async def test_what_is_there_and_each_change():
    """Pods come and go; other Services' slices are not asked for; nodes' labels change a replica."""
    async with FakeKubernetes() as api:
        api.put(SLICES, some("a"))
        api.put(SLICES, endpoint_slice("other", "else", endpoint("10.9.9.9", "z")))
        api.put(NODES, node("n1", {"cloud.google.com/gke-spot": "true"}))
        async with listening(api) as heard:
            await heard.until("a")
            assert heard.all[0][0].replica.cost.tier == "spot"
            api.put(SLICES, some("a", "b"))
            await heard.until("a", "b")
            api.put(NODES, node("n1", {}, "aws-node-termination-handler/spot-itn"))
            await until(lambda: all(found.warned is not None for found in heard.all[-1]))
            api.delete(SLICES, "vllm-a")
            await heard.until()


async def test_lists_come_in_pages():
    """More objects than one answer holds are all found."""
    async with FakeKubernetes(page=2) as api:
        for number in range(5):
            api.put(SLICES, endpoint_slice(f"vllm-{number}", "vllm", endpoint(f"10.0.0.{number + 1}", f"p{number}")))
        async with listening(api, nodes=False) as heard:
            await heard.until("p0", "p1", "p2", "p3", "p4")
        assert [query.get("continue") for kind, query in api.asked if "watch" not in query] == [None, "2", "4"]


async def test_a_watch_that_ends_goes_on_where_it_was():
    """By its last version, a bookmark's too: nothing is listed again, and nothing that came in between is lost."""
    async with FakeKubernetes() as api:
        api.put(SLICES, some("a"))
        async with listening(api, nodes=False) as heard:
            await heard.until("a")
            await until(lambda: api.watching == [SLICES])
            api.bookmark(SLICES)
            await asyncio.sleep(0.05)
            api.end_watches()
            await until(lambda: len(api.asked) == 3)
            api.put(SLICES, some("a", "b"))
            await heard.until("a", "b")
        watches = [int(query["resourceVersion"]) for _, query in api.asked if "watch" in query]
        assert len(watches) == 2
        assert watches[1] == watches[0] + 1  # the bookmark's


@pytest.mark.parametrize("as_status", [False, True])
async def test_gone_is_listed_again(as_status: bool):
    """410, in the stream or as the answer itself: all is listed, and the watch goes on from there."""
    async with FakeKubernetes() as api:
        api.put(SLICES, some("a"))
        async with listening(api, nodes=False) as heard:
            await heard.until("a")
            await until(lambda: api.watching == [SLICES])
            api.refuse_watches_with_status = as_status
            if as_status:
                api.expired_below = 10**6
                api.end_watches()
                await until(lambda: sum("watch" not in query for _, query in api.asked) >= 2)
                api.expired_below = 0
            else:
                api.expire()
            api.put(SLICES, some("a", "b"))
            await heard.until("a", "b")
        assert sum("watch" not in query for _, query in api.asked) >= 2


async def test_while_the_api_is_away_the_fleet_stays():
    """And what changed meanwhile is learned when it is back."""

    async def gone_for_a_while(api: FakeKubernetes, heard: Heard) -> None:
        await api.leave()
        await asyncio.sleep(0.2)
        assert heard.names == ["a"]
        api.put(SLICES, some("a", "b"))
        await api.come_back()

    await _with_one(gone_for_a_while)


async def test_without_the_right_to_read_nodes_the_engines_are_found(caplog: pytest.LogCaptureFixture):
    """After a little, and the log says which role is missing."""
    async with FakeKubernetes() as api:
        api.forbidden.add(NODES)
        api.put(SLICES, some("a"))
        async with listening(api) as heard:
            await heard.until("a")
        assert "Nodes: the API answers 403" in caplog.text
        assert "docs/discovery.md" in caplog.text


async def _with_one(change: Callable[[FakeKubernetes, Heard], Awaitable[None]]) -> None:
    async with FakeKubernetes() as api:
        api.put(SLICES, some("a"))
        async with listening(api, nodes=False) as heard:
            await heard.until("a")
            await change(api, heard)
            await heard.until("a", "b")
