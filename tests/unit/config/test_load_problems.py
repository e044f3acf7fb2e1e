"""What each mistake is answered with: the key path first, then what is wrong, then what to change."""

from pathlib import Path

import pytest

from config.load import ConfigError, load

GOOD = {"name": "a", "url": "http://h:1"}


def problems(said: dict[str, object] | None = None, environ: dict[str, str] | None = None) -> list[str]:
    """The problems of settings given as flags, which are nested as a file is."""
    said = {"replicas": [GOOD], **(said or {})}
    with pytest.raises(ConfigError) as caught:
        load(None, said, environ or {})
    return [
        problem.replace(" (from the command line)", "").replace(" (from --backend)", "")
        for problem in caught.value.problems
    ]


REPLICA_PROBLEMS = [
    ({"cost": {"tier": "cheap"}}, "replicas[0].cost.tier: 'cheap' is not one of reserved, on_demand, spot"),
    ({"cost": {"usd_per_hour": -1}}, "replicas[0].cost.usd_per_hour: -1 is too small; give 0 or more"),
    ({"cost": {"usd_per_hour": float("inf")}}, "replicas[0].cost.usd_per_hour: inf is not a finite number"),
    ({"backend": "vlm"}, "replicas[0].backend: 'vlm' is not one of vllm, openai, triton, simulated"),
    ({"tier": "spot"}, "replicas[0].tier: unknown key; did you mean `replicas[0].cost.tier`?"),
    ({"ulr": "x"}, "replicas[0].ulr: unknown key; did you mean `url`?"),
    ({"max_num_seqs": 1}, "replicas[0].max_num_seqs: unknown key; did you mean `replicas[0].capacity.max_num_seqs`?"),
    (
        {"capacity": {"max_num_batched_tokens": 0}},
        "replicas[0].capacity.max_num_batched_tokens: 0 is too small; give more than 0",
    ),
    ({"capacity": {"kv_blocks": 1.5}}, "replicas[0].capacity.kv_blocks: 1.5 is not a whole number"),
    ({"gpu": None}, "replicas[0].gpu: empty; give it a value or remove the line"),
    ({"gpu": "H100"}, "replicas[0].gpu: 'H100' is not a section; write its keys below it, indented"),
    ({"gpu": {"type": 100}}, "replicas[0].gpu.type: 100 is not text; put it in quotes"),
    ({"gpu": {1: 2}}, "replicas[0].gpu: the key 1 is not text; put it in quotes"),
    ({"models": "llama"}, "replicas[0].models: 'llama' is not a list; begin each item with `- `"),
    ({"models": [{"kind": "chat"}]}, "replicas[0].models[0].name: missing; add it"),
    ({"models": [""]}, "replicas[0].models[0].name: empty; give it a value or remove the line"),
    ({"models": ["m", "m"]}, "replicas[0].models[1].name: 'm' is listed twice; keep one"),
    ({"priority_scheduling": "maybe"}, "replicas[0].priority_scheduling: 'maybe' is not true or false"),
    ({"url": None}, "replicas[0].url: missing; a vllm replica needs one, such as http://127.0.0.1:8000"),
    (
        {"url": "h:1"},
        "replicas[0].url: 'h:1' is no http address; a vllm replica needs one, such as http://127.0.0.1:8000",
    ),
    (
        {"url": "http://h:99999"},
        "replicas[0].url: has a bad host or port; a vllm replica needs one, such as http://127.0.0.1:8000",
    ),
    ({"url": "http://h:0"}, "replicas[0].url: 'http://h:0' has port 0; ports go from 1 to 65535"),
    (
        {"url": "http://h:1/?a=b"},
        "replicas[0].url: 'http://h:1/?a=b' has a query, a fragment or a space; keep scheme, host, port and path",
    ),
    (
        {"url": "unix:vllm.sock"},
        "replicas[0].url: 'unix:vllm.sock' is no Unix socket; write unix:// and its absolute path, such as unix:///run/vllm.sock",
    ),
    (
        {"metrics_url": "grpc://h:1"},
        "replicas[0].metrics_url: 'grpc://h:1' is no http address; it must be one, such as http://127.0.0.1:8000",
    ),
    ({"backend": "simulated"}, "replicas[0].url: a simulated replica runs in process; remove it, or set backend: vllm"),
    (
        {"backend": "triton", "models": ["m"]},
        "replicas[0].url: 'http://h:1' is no grpc address; a triton replica needs one, such as grpc://127.0.0.1:8001",
    ),
    (
        {"backend": "triton", "url": "grpc://h:1"},
        "replicas[0].models: empty; a triton replica must name them, such as [{name: textgen, kind: chat}]",
    ),
    (
        {"gpu": {"count": 4}, "simulated": {"tensor_parallel": 4, "pipeline_parallel": 2}},
        "replicas[0].simulated.tensor_parallel: 4, times pipeline_parallel 2, is 8 GPUs and gpu.count is 4; make them equal",
    ),
    (
        {"gpu": {"count": 3}, "simulated": {"pipeline_parallel": 2}},
        "replicas[0].simulated.pipeline_parallel: gpu.count is 3, which 2 stages cannot share evenly; make it a multiple",
    ),
    (
        {"backend": "simulated", "url": None, "gpu": {"type": "A100-80G"}, "simulated": {"shape": "70b"}},
        "replicas[0].simulated.shape: the weights of 70b leave no memory for KV on 1 x A100-80G; raise gpu.count or memory_ratio, or take a larger gpu.type",
    ),
    ({"simulated": {"shape": "7b"}}, "replicas[0].simulated.shape: '7b' is not one of 8b, 70b"),
    ({"simulated": {"memory_ratio": 90}}, "replicas[0].simulated.memory_ratio: 90 is too large; give 1 or less"),
]


@pytest.mark.parametrize(("change", "problem"), REPLICA_PROBLEMS)
def test_a_replica_s_mistakes(change: dict[str, object], problem: str):
    """One mistake, one line, with its key path and a remedy."""
    assert problems({"replicas": [{**GOOD, **change}]}) == [problem]


def test_a_replica_s_name_has_a_form():
    """Names become metric labels; the pattern is told."""
    (problem,) = problems({"replicas": [{**GOOD, "name": "a b"}]})
    assert problem.startswith("replicas[0].name: 'a b' has a wrong form; it must match ^[A-Za-z0-9]")


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"server": {"prot": 1}}, "server.prot: unknown key; did you mean `port`?"),
        ({"port": 1}, "port: unknown key; did you mean `server.port`?"),
        ({"server": {"port": 70000}}, "server.port: 70000 is too large; give 65535 or less"),
        ({"server": {"port": "x"}}, "server.port: 'x' is not a whole number"),
        ({"server": {"host": ""}}, "server.host: empty; give it a value or remove the line"),
        ({"queue": {"max_wait_s": "soon"}}, "queue.max_wait_s: 'soon' is not a number"),
        ({"scheduling": {"kv_watermark_ratio": 1}}, "scheduling.kv_watermark_ratio: 1 is too large; give less than 1"),
        ({"log_level": "loud"}, "log_level: 'loud' is not one of debug, info, warning, error"),
        (
            {"server": {"cors_origins": ["https://a/"]}},
            "server.cors_origins[0]: 'https://a/' can match no browser's origin; write * or scheme://host[:port], no path, no slash",
        ),
    ],
)
def test_mistakes_elsewhere(said: dict[str, object], problem: str):
    """The same form for every section."""
    assert problems(said) == [problem]


def test_an_unlike_key_lists_the_known_ones():
    """Where nothing is near, the section's keys are named."""
    assert problems({"probe": {"zzz": 1}}) == [
        "probe.zzz: unknown key; known here: interval_s, timeout_s, unhealthy_after, stale_after_s"
    ]


def test_every_problem_is_reported_at_once():
    """Three mistakes in three places give three lines."""
    assert len(problems({"server": {"port": -1, "prot": 2}, "queue": {"aging_s": 0}})) == 3


def test_replicas_must_not_contradict_each_other():
    """A name twice, an engine twice (however spelled) and a model of two kinds are told together."""
    said = problems(
        {
            "replicas": [
                {"name": "a", "url": "http://H:80/v1", "models": ["m"]},
                {"name": "b", "url": "http://h", "models": [{"name": "m", "kind": "embedding"}]},
            ]
        }
    )
    assert said == [
        "replicas[1].url: is replicas[0]'s too; an engine counted twice would be overfilled",
        "replicas[1].models[0].kind: 'm' is embedding here and chat in replicas[0]; a name has one kind",
    ]


def test_a_name_twice_in_a_file(tmp_path: Path):
    """Names tell replicas apart."""
    path = tmp_path / "p.yaml"
    path.write_text("replicas: [{name: a, url: 'http://h:1'}, {name: a, url: 'http://h:2'}]")
    with pytest.raises(ConfigError) as caught:
        load(path, {}, {})
    assert caught.value.problems == [
        "replicas[1].name: 'a' is taken by replicas[0]; names tell replicas apart in metrics"
    ]


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("PENSTOCK_SERVER__PROT", "1", "PENSTOCK_SERVER__PROT: sets nothing; did you mean PENSTOCK_SERVER__PORT?"),
        ("PENSTOCK_PORT", "8080", "PENSTOCK_PORT: sets nothing; did you mean PENSTOCK_SERVER__PORT?"),
        ("PENSTOCK_SERVER_PORT", "8080", "PENSTOCK_SERVER_PORT: sets nothing; did you mean PENSTOCK_SERVER__PORT?"),
        (
            "PENSTOCK_XYZZY",
            "1",
            "PENSTOCK_XYZZY: sets nothing; `penstock schema` lists what can be set, as PENSTOCK_SECTION__KEY",
        ),
        (
            "PENSTOCK_REPLICAS__0__URL",
            "x",
            "PENSTOCK_REPLICAS__0__URL: replicas is a list; give all of it as JSON in PENSTOCK_REPLICAS",
        ),
        (
            "PENSTOCK_SERVER__CORS_ORIGINS",
            "https://a",
            "PENSTOCK_SERVER__CORS_ORIGINS: not a JSON list; write [...], names and texts in double quotes",
        ),
        ("PENSTOCK_QUEUE", "5", "PENSTOCK_QUEUE: not a JSON object; write {...}, names and texts in double quotes"),
        ("PENSTOCK_SERVER__PORT", "x", "server.port: 'x' is not a whole number (from PENSTOCK_SERVER__PORT)"),
        (
            "PENSTOCK_QUEUE",
            '{"nope": 1}',
            "queue.nope: unknown key; known here: max_requests, max_bytes, max_tokens, max_wait_s, aging_s, floors, tier_shares (from PENSTOCK_QUEUE)",
        ),
    ],
)
def test_mistakes_in_the_environment(name: str, value: str, problem: str):
    """A variable that sets nothing, or no JSON, or a bad value, is named."""
    assert problems(environ={name: value}) == [problem]


def test_a_value_says_where_it_came_from():
    """Flags and --backend are told apart from the file."""
    with pytest.raises(ConfigError) as caught:
        load(None, {"server": {"port": -1}, "replicas": [{**GOOD, "cost": {"tier": "x"}}]}, {})
    assert caught.value.problems == [
        "server.port: -1 is too small; give 0 or more (from the command line)",
        "replicas[0].cost.tier: 'x' is not one of reserved, on_demand, spot (from --backend)",
    ]


def test_huge_values_are_shown_short():
    """An alias bomb or a pasted document does not flood the terminal."""
    bomb: object = "x" * 100
    for _ in range(12):
        bomb = [bomb] * 10
    (problem,) = problems({"server": bomb})
    assert len(problem) < 1000
