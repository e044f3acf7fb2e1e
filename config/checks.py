"""What types alone can't refuse: addresses that fit no backend, replicas that contradict each other.

Pure; each function returns problems with where they are, `config.schema` raises them. Refuses only what is surely wrong.
"""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from config.gpus import kv_bytes

if TYPE_CHECKING:
    from config.replica import ReplicaConfig

Problem = tuple[tuple[str | int, ...], str]  # where, below the section that refuses; what is wrong and what to change

_NO_HEADER: Final = "empty, or has spaces, line breaks or other characters that no HTTP header can carry"
_SHORTEST_KEY: Final = 16  # of letters and digits at random they are beyond guessing

REFUSED = "refused"  # the error type by which `config.problems` knows texts that are complete

OWN_POLICY: Final = "penstock"
# What `batching.policies.BASELINES` builds, which this room cannot ask: a test holds the two together.
BASELINE_POLICIES: Final = (
    "round_robin", "least_requests", "power_of_two", "least_load", "cache_aware", "llm_d", "llm_d_sticky", "dynamo",
    "slo_pack_load", "prefix_aware", "spot_first",
)  # fmt: skip


def refusal(title: str, problems: Sequence[Problem]) -> ValidationError:
    """One error for each problem, at its own key path; raised in a validator, pydantic puts the section's path before it."""
    return ValidationError.from_exception_data(
        title,
        [
            InitErrorDetails(type=PydanticCustomError(REFUSED, "{text}", {"text": text}), loc=where, input=None)
            for where, text in problems
        ],
        hide_input=True,
    )


def replica_problems(replica: "ReplicaConfig") -> Iterator[Problem]:
    """One replica's contradictions."""
    if replica.backend == "simulated":
        if replica.url is not None:
            yield ("url",), "a simulated replica runs in process; remove it, or set backend: vllm"
    else:
        schemes = ("grpc", "grpcs") if replica.backend == "triton" else ("http", "https")
        local = replica.backend != "triton" and replica.url is not None and replica.url.startswith("unix:")
        if local:
            problem = _path_problem(replica.url or "")
        else:
            problem = address_problem(replica.url, schemes, f"a {replica.backend} replica needs one")
        if problem:
            yield ("url",), problem
    if replica.metrics_url is not None:
        problem = address_problem(replica.metrics_url, ("http", "https"), "it must be one")
        if problem:
            yield ("metrics_url",), problem
    yield from _engine_problems(replica)
    if replica.backend == "triton" and not replica.models:
        yield ("models",), "empty; a triton replica must name them, such as [{name: textgen, kind: chat}]"
    if replica.api_key is not None and not _can_be_sent(replica.api_key):
        yield ("api_key",), _NO_HEADER
    yield from _kv_events_problems(replica)
    names = [model.name for model in replica.models]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield ("models", index, "name"), f"{name!r} is listed twice; keep one"


def _kv_events_problems(replica: "ReplicaConfig") -> Iterator[Problem]:
    events = replica.kv_events
    if events is None:
        return
    if replica.backend != "vllm":
        yield ("kv_events",), f"{replica.backend} publishes none; remove it, or set backend: vllm"
    for name, address, port in (("endpoint", events.endpoint, 5557), ("replay_endpoint", events.replay_endpoint, 5558)):
        problem = None if address is None else _socket_problem(address, port)
        if problem:
            yield ("kv_events", name), problem
    if events.endpoint == events.replay_endpoint:
        yield ("kv_events", "replay_endpoint"), "is the endpoint, too; the engine binds a port of its own for replays"


def _socket_problem(address: str, port: int) -> str | None:
    """Why a ZeroMQ socket can't be connected to this."""
    example = f"write the engine's as seen from here, such as tcp://10.0.0.10:{port}"
    if address.startswith("ipc:///"):
        return None
    try:
        parts = urlsplit(address)
        host, number = parts.hostname, parts.port
    except ValueError:
        return f"has a bad host or port; {example}"
    if parts.scheme != "tcp" or not host or not number or parts.path or parts.query or parts.username is not None:
        return f"{address!r} is no tcp address with host and port; {example}"
    if host in {"*", "0.0.0.0", "::"}:  # noqa: S104 - refused here
        return f"{address!r} is where the engine listens, not where it is reached; {example}"
    return None


def _engine_problems(replica: "ReplicaConfig") -> Iterator[Problem]:
    """What no simulated engine can be."""
    engine, count = replica.simulated, replica.gpu.count
    stages, tensor = engine.pipeline_parallel, engine.tensor_parallel
    if tensor is None and count % stages:
        what = f"gpu.count is {count}, which {stages} stages cannot share evenly; make it a multiple"
        yield ("simulated", "pipeline_parallel"), what
    elif tensor is not None and tensor * stages != count:
        what = f"{tensor}, times pipeline_parallel {stages}, is {tensor * stages} GPUs and gpu.count is {count}; make them equal"
        yield ("simulated", "tensor_parallel"), what
    if replica.backend == "simulated" and replica.capacity.kv_blocks is None:
        left = kv_bytes(replica.gpu.type, count=count, shape=engine.shape, memory_ratio=engine.memory_ratio)
        if left <= 0:
            what = (
                f"the weights of {engine.shape} leave no memory for KV on {count} x {replica.gpu.type}; raise gpu.count"
                " or memory_ratio, or take a larger gpu.type"
            )
            yield ("simulated", "shape"), what


def _path_problem(url: str) -> str | None:
    """Why `url` is no Unix socket's."""
    path = url.removeprefix("unix://")
    if path == url or not path.startswith("/") or path.endswith("/") or any(c in path for c in "?#\0"):
        return f"{url!r} is no Unix socket; write unix:// and its absolute path, such as unix:///run/vllm.sock"
    return None


def address_problem(url: str | None, schemes: tuple[str, str], who: str) -> str | None:
    """Why `url` is no address of these schemes; never shows what may be a password."""
    example = f"{who}, such as {schemes[0]}://127.0.0.1:{8001 if schemes[0] == 'grpc' else 8000}"
    if url is None:
        return f"missing; {example}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return f"has a bad host or port; {example}"
    if parts.username is not None or parts.password is not None:
        return "carries a user or password; put the credential in `api_key`"
    if parts.scheme not in schemes or not parts.hostname:
        return f"{url!r} is no {schemes[0]} address; {example}"
    if port == 0:
        return f"{url!r} has port 0; ports go from 1 to 65535"
    if parts.query or parts.fragment or any(character.isspace() for character in url):
        return f"{url!r} has a query, a fragment or a space; keep scheme, host, port and path"
    return None


def fleet_problems(replicas: Sequence["ReplicaConfig"]) -> Iterator[Problem]:
    """Contradictions between replicas."""
    names: dict[str, int] = {}
    engines: dict[str, int] = {}
    publishers: dict[str, int] = {}
    kinds: dict[str, tuple[str, str]] = {}
    for i, replica in enumerate(replicas):
        first = names.setdefault(replica.name, i)
        if first != i:
            what = f"{replica.name!r} is taken by replicas[{first}]; names tell replicas apart in metrics"
            yield ("replicas", i, "name"), what
        if replica.url is not None:
            first = engines.setdefault(engine_address(replica.url), i)
            if first != i:
                yield ("replicas", i, "url"), f"is replicas[{first}]'s too; an engine counted twice would be overfilled"
        if replica.kv_events is not None:
            first = publishers.setdefault(replica.kv_events.endpoint, i)
            if first != i:
                yield ("replicas", i, "kv_events", "endpoint"), f"is replicas[{first}]'s too; each engine has its own"
        for j, model in enumerate(replica.models):
            kind, where = kinds.setdefault(model.name, (model.kind, f"replicas[{i}]"))
            if kind != model.kind:
                what = f"{model.name!r} is {model.kind} here and {kind} in {where}; a name has one kind"
                yield ("replicas", i, "models", j, "kind"), what


def _can_be_sent(key: str) -> bool:
    return bool(key) and key.isascii() and key.isprintable() and " " not in key


def good_admin_key(key: str) -> str:
    """The key; raises for one that no client could send, or that somebody could guess."""
    problem = None if _can_be_sent(key) else _NO_HEADER
    if problem is None and len(key) < _SHORTEST_KEY:
        problem = f"shorter than {_SHORTEST_KEY} characters, so it could be guessed; `openssl rand -hex 32` makes one"
    if problem is not None:
        raise refusal("admin_key", [((), problem)])
    return key


def origin_problems(origins: Sequence[str]) -> Iterator[Problem]:
    """CORS origins that no browser will ever send."""
    for index, origin in enumerate(origins):
        scheme, separator, rest = origin.partition("://")
        if origin != "*" and (not separator or not scheme or not rest or "/" in rest or origin != origin.strip()):
            yield (
                (index,),
                f"{origin!r} can match no browser's origin; write * or scheme://host[:port], no path, no slash",
            )


def policy_problems(policy: str) -> Iterator[Problem]:
    """A name that no rule goes by."""
    known = (OWN_POLICY, *BASELINE_POLICIES)
    if policy not in known:
        near = get_close_matches(policy.lower().replace("-", "_"), known, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        yield (), f"{policy!r} is no policy; {meant}there are {', '.join(known)}"


def engine_address(url: str) -> str:
    """Two spellings of one address are equal; OpenAI base URLs may or may not end in /v1."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix:{parts.path}"
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.hostname}:{port}{parts.path.rstrip('/').removesuffix('/v1')}"
