"""Where a replica's KV events come from: what is refused, and how it is said."""

import pytest

from config.load import ConfigError, load
from config.schema import KvEvents, ReplicaConfig

WHERE = {"endpoint": "tcp://h:5557", "replay_endpoint": "tcp://h:5558", "topic": "kv-events"}


def problems(*replicas: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(None, {"replicas": list(replicas)}, {})
    return [problem.replace(" (from --backend)", "") for problem in caught.value.problems]


def replica(name: str = "a", **more: object) -> dict[str, object]:
    return {"name": name, "url": f"http://{name}:8000", **more}


def test_off_by_default() -> None:
    """Nothing is listened to unless it is said; replay and topic need not be."""
    assert ReplicaConfig(name="a", url="http://h").kv_events is None
    assert KvEvents(endpoint="tcp://h:5557") == KvEvents(endpoint="tcp://h:5557", replay_endpoint=None, topic="")


SEEN = "write the engine's as seen from here, such as tcp://10.0.0.10"
NONE = f"is no tcp address with host and port; {SEEN}"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"endpoint": "h:5557"}, f"endpoint: 'h:5557' {NONE}:5557"),
        ({"endpoint": "tcp://h"}, f"endpoint: 'tcp://h' {NONE}:5557"),
        ({"replay_endpoint": "http://h:1"}, f"replay_endpoint: 'http://h:1' {NONE}:5558"),
        (
            {"endpoint": "tcp://*:5557"},
            f"endpoint: 'tcp://*:5557' is where the engine listens, not where it is reached; {SEEN}:5557",
        ),
        ({"endpoint": "tcp://h:x"}, f"endpoint: has a bad host or port; {SEEN}:5557"),
        (
            {"replay_endpoint": "tcp://h:5557"},
            "replay_endpoint: is the endpoint, too; the engine binds a port of its own for replays",
        ),
        ({"topc": "x"}, "topc: unknown key; did you mean `topic`?"),
    ],
)
def test_mistakes(change: dict[str, object], problem: str) -> None:
    """One mistake, one line, with its key path and a remedy."""
    assert problems(replica(kv_events={**WHERE, **change})) == [f"replicas[0].kv_events.{problem}"]


def test_sockets_in_the_file_system_are_addresses_too() -> None:
    """An engine on the same host may publish over ipc."""
    events = {"endpoint": "ipc:///run/vllm/kv.sock"}
    assert load(None, {"replicas": [replica(kv_events=events)]}, {}).replicas[0].kv_events == KvEvents(**events)


def test_only_vllm_tells() -> None:
    """Other engines publish no such events."""
    assert problems(replica(backend="openai", kv_events=WHERE)) == [
        "replicas[0].kv_events: openai publishes none; remove it, or set backend: vllm"
    ]


def test_each_engine_has_its_own() -> None:
    """Two replicas that listen to one publisher would believe one engine's cache of both."""
    assert problems(replica("a", kv_events=WHERE), replica("b", kv_events=WHERE)) == [
        "replicas[1].kv_events.endpoint: is replicas[0]'s too; each engine has its own"
    ]
