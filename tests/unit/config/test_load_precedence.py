"""Where a setting may be said, and who wins."""

from pathlib import Path

import pytest

from config.load import ConfigError, embedded_default, is_embedded, load
from config.schema import BackendKind, CostTier, Scheduling

ENGINE = "replicas: [{name: a, url: 'http://127.0.0.1:8000'}]\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "penstock.yaml"
    path.write_text(ENGINE + "server: {port: 1001, host: 127.0.0.2}\nlog_level: warning\n")
    return path


def test_file_wins_over_defaults(file: Path):
    """What the file says holds, what it does not say is the default."""
    config = load(file, {}, {})
    assert (config.server.port, config.server.max_json_depth) == (1001, 64)


def test_environment_wins_over_file(file: Path):
    """A nested variable changes its key and leaves the section's others alone."""
    config = load(file, {}, {"PENSTOCK_SERVER__PORT": "1002", "PENSTOCK_LOG_LEVEL": "error"})
    assert (config.server.port, config.server.host, config.log_level) == (1002, "127.0.0.2", "error")


def test_flags_win_over_environment(file: Path):
    """A flag is said last and counts most."""
    config = load(file, {"server": {"port": 1003}}, {"PENSTOCK_SERVER__PORT": "1002", "PENSTOCK_SERVER__HOST": "::1"})
    assert (config.server.port, config.server.host) == (1003, "::1")


def test_environment_reaches_every_depth():
    """Sections of sections are nested with `__`."""
    config = load(None, {}, {"PENSTOCK_SCHEDULING__OBJECTIVES__TTFT_S": "0.25"})
    assert config.scheduling.objectives.ttft_s == 0.25
    assert config.scheduling.objectives.tpot_s == 0.1


def test_lists_and_sections_in_the_environment_are_json():
    """Lists are JSON, replicas included; a whole section may be one object."""
    config = load(
        None,
        {},
        {
            "PENSTOCK_REPLICAS": '[{"name": "x", "url": "http://h:1", "models": ["m"]}]',
            "PENSTOCK_SERVER__CORS_ORIGINS": '["https://a.example"]',
            "PENSTOCK_QUEUE": '{"max_wait_s": 3}',
        },
    )
    assert [replica.name for replica in config.replicas] == ["x"]
    assert config.server.cors_origins == ("https://a.example",)
    assert config.queue.max_wait_s == 3


def test_an_empty_variable_is_unset(file: Path):
    """`PENSTOCK_SERVER__PORT=` leaves the file's word."""
    assert load(file, {}, {"PENSTOCK_SERVER__PORT": ""}).server.port == 1001


def test_the_file_may_be_named_by_a_variable(file: Path):
    """PENSTOCK_CONFIG is the default of --config, which wins over it."""
    assert load(None, {}, {"PENSTOCK_CONFIG": str(file)}).server.port == 1001
    assert load(file, {}, {"PENSTOCK_CONFIG": "/nonexistent"}).server.port == 1001


def test_variables_of_others_are_left_alone():
    """The tests' own variable and the names Kubernetes gives a Service called penstock stop nothing."""
    environ = {
        "PENSTOCK_ENGINES": "/somewhere",
        "PENSTOCK_SERVICE_HOST": "10.0.0.1",
        "PENSTOCK_SERVICE_PORT": "8080",
        "PENSTOCK_SERVICE_PORT_HTTP": "8080",
        "PENSTOCK_PORT": "tcp://10.0.0.1:8080",
        "PENSTOCK_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        "PENSTOCK_PORT_8080_TCP_ADDR": "10.0.0.1",
        "PENSTOCK_METRICS_SERVICE_HOST": "10.0.0.2",
        "PENSTOCK_METRICS_PORT": "tcp://10.0.0.2:9090",
        "PATH": "/bin",
    }
    assert load(None, {}, environ) == load(None, {}, {})


def test_the_embedded_default_runs_when_nothing_is_said():
    """Three simulated replicas of one model, a cost tier each; settings from elsewhere still hold."""
    config = load(None, {}, {"PENSTOCK_SERVER__PORT": "9"})
    assert is_embedded(config)
    assert config.replicas == embedded_default().replicas
    assert config.server.port == 9
    assert {(r.name, r.gpu.type, r.cost.tier, r.cost.usd_per_hour, r.backend) for r in config.replicas} == {
        ("h100-reserved", "H100-80G", CostTier.RESERVED, 2.5, BackendKind.SIMULATED),
        ("a100-on-demand", "A100-80G", CostTier.ON_DEMAND, 3.0, BackendKind.SIMULATED),
        ("a100-spot", "A100-80G", CostTier.SPOT, 1.2, BackendKind.SIMULATED),
    }
    assert {model.name for replica in config.replicas for model in replica.models} == {"sim-8b"}


def test_flag_replicas_replace_the_embedded_default():
    """Whoever names an engine does not get simulated ones beside it."""
    config = load(None, {"replicas": [{"name": "mine", "url": "http://h:1"}]}, {})
    assert [replica.name for replica in config.replicas] == ["mine"]
    assert not is_embedded(config)


def test_flag_replicas_replace_by_name_or_append(file: Path):
    """A flag's replica takes the place of the file's of that name, whole; others come after."""
    flags = {"replicas": [{"name": "b", "url": "http://h:2"}, {"name": "a", "url": "http://h:1"}]}
    config = load(file, flags, {})
    assert [(replica.name, replica.url) for replica in config.replicas] == [("a", "http://h:1"), ("b", "http://h:2")]


@pytest.mark.parametrize("text", ["", "replicas:\n", "replicas: []\n", "server: {port: 1}\n"])
def test_a_file_without_replicas_is_an_error(tmp_path: Path, text: str):
    """A file that forgot its replicas does not silently serve simulated ones."""
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(path, {}, {})
    assert caught.value.problems == [
        "replicas: empty; describe at least one (config/example.yaml), give --backend NAME=URL, or say under `discovery` where they are found"
    ]


def test_the_example_loads():
    """config/example.yaml is valid and says every default as it is."""
    example = load(Path(__file__).parents[3] / "config/example.yaml", {}, {})
    defaults = embedded_default()
    assert example.model_copy(update={"replicas": ()}) == defaults.model_copy(update={"replicas": ()})
    assert [replica.backend for replica in example.replicas] == ["vllm", "vllm", "triton"]
    assert [(model.name, model.kind) for model in example.replicas[2].models] == [
        ("textgen", "chat"),
        ("embed", "embedding"),
    ]
    assert example.replicas[2].metrics_url is not None


def test_the_example_names_every_section():
    """Each section and each of its plain keys is in the example, so that it can be copied from."""
    text = (Path(__file__).parents[3] / "config/example.yaml").read_text()
    dumped = embedded_default().model_dump(exclude={"replicas"})
    keys = {key for section in dumped.values() if isinstance(section, dict) for key in section} | dumped.keys()
    assert [key for key in sorted(keys) if f"{key}:" not in text] == []


def test_the_retry_budget_is_still_found_where_it_was():
    """`hedge.budget_ratio` is what it was called before retries shared it; the present name counts where both are said."""
    before = Scheduling.model_validate({"hedge": {"enabled": False, "budget_ratio": 0.3}})
    assert (before.retry_budget_ratio, before.hedge.enabled) == (0.3, False)
    both = Scheduling.model_validate({"hedge": {"budget_ratio": 0.3}, "retry_budget_ratio": 0.2})
    assert both.retry_budget_ratio == 0.2
    assert Scheduling().retry_budget_ratio == 0.1
