"""What --print-config prints can be loaded again and means the same."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from config.load import embedded_default, load, redacted_yaml
from config.schema import Config

seconds = st.floats(min_value=1e-6, max_value=1e12)
sizes = st.integers(min_value=1, max_value=2**40)
names = st.text(min_size=1, max_size=20)
optional_sizes = st.none() | sizes


def section(**keys: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Any subset of these keys."""
    return st.fixed_dictionaries({}, optional=keys)


replicas = section(
    models=st.lists(
        st.builds(dict, name=names, chat_template=st.none() | st.text(max_size=30)),
        max_size=3,
        unique_by=lambda m: m["name"],
    ),
    gpu=section(type=names, count=sizes),
    cost=section(
        tier=st.sampled_from(["reserved", "on_demand", "spot"]), usd_per_hour=st.floats(min_value=0, max_value=1e6)
    ),
    capacity=section(max_num_seqs=optional_sizes, kv_blocks=optional_sizes, block_size=optional_sizes),
    priority_scheduling=st.booleans(),
)
configs = section(
    server=section(
        host=names, port=st.integers(0, 65535), header_timeout_s=seconds, cors_origins=st.just(["https://a"])
    ),
    queue=section(max_requests=sizes, max_wait_s=seconds),
    scheduling=section(kv_watermark_ratio=st.floats(0, 0.99), objectives=section(ttft_s=seconds)),
    log_level=st.sampled_from(["debug", "info", "warning", "error"]),
)


@settings(deadline=None, derandomize=True)
@example(said={}, fleet=[{"models": [{"name": "Zürich \x85\u2028\ufeff", "chat_template": "\x85a\r\n\x85 b"}]}])
@given(said=configs, fleet=st.lists(replicas, min_size=1, max_size=3))
def test_a_printed_configuration_loads_as_itself(said: dict[str, Any], fleet: list[dict[str, Any]]):
    """load(redacted_yaml(config)) == config, for any configuration without secrets."""
    listed = [{**replica, "name": f"r{i}", "url": f"http://h{i}:1"} for i, replica in enumerate(fleet)]
    config = Config.model_validate({**said, "replicas": listed})
    with TemporaryDirectory() as folder:
        path = Path(folder) / "printed.yaml"
        path.write_text(redacted_yaml(config), encoding="utf-8")
        assert load(path, {}, {}) == config


def test_defaults_are_printed_too():
    """Every key is there, so that what is in force can be read off."""
    printed = yaml.safe_load(redacted_yaml(embedded_default()))
    assert printed == embedded_default().model_dump(mode="json")
    assert printed["server"]["keepalive_comment_s"] == 15.0
