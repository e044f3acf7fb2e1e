"""What `figures` reads from real and documented pages, and that nothing makes it raise."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.engine_metrics import EngineFigures, figures

DATA = Path(__file__).parent / "data"


def page(name: str) -> str:
    return (DATA / f"{name}_metrics.txt").read_text("utf-8")


def test_vllm_page():
    """A page that vLLM 0.32 printed gives every figure, the blocks and their size from cache_config_info's labels."""
    assert figures(page("vllm")) == EngineFigures(
        running=0,
        waiting=0,
        kv_usage_ratio=0.0,
        preemptions_total=0,
        prefix_queries_total=25576,
        prefix_hits_total=6400,
        iteration_total=2946,
        asleep=False,
        kv_blocks=512,
        block_size=32,
    )


def test_triton_page_tells_only_what_waits():
    """Plain Triton's pending requests of all models are added up; the rest stays unknown."""
    text = page("triton").replace('count{model="embed",version="1"} 0', 'count{model="embed",version="1"} 65')
    assert figures(text) == EngineFigures(waiting=65)


def test_sglang_page():
    """SGLang's names are understood."""
    assert figures(page("sglang")) == EngineFigures(
        running=162, waiting=2826, kv_usage_ratio=0.28, prefix_queries_total=8_128_902, prefix_hits_total=120
    )


def test_triton_with_tensorrt_llm():
    """The LLM backend's own queue counts, not Triton's in front of the preprocessing model."""
    assert figures(page("triton_trtllm")) == EngineFigures(
        running=3, waiting=1, kv_usage_ratio=0.4875, kv_blocks=4000, block_size=64
    )


def test_trtllm_serve():
    """trtllm-serve's names are understood."""
    text = (
        "trtllm_num_requests_running 4\ntrtllm_num_requests_waiting 2\ntrtllm_kv_cache_utilization 0.5\n"
        "trtllm_kv_cache_tokens_per_block 32\ntrtllm_kv_cache_max_blocks 900\n"
    )
    assert figures(text) == EngineFigures(running=4, waiting=2, kv_usage_ratio=0.5, kv_blocks=900, block_size=32)


def test_old_vllm_names_give_way_to_new_ones():
    """gpu_cache_usage_perc is read where the new name is missing, and not added to it where both are there."""
    old = 'vllm:gpu_cache_usage_perc{model_name="m"} 0.25\nvllm:gpu_prefix_cache_hits_total{model_name="m"} 7\n'
    assert figures(old) == EngineFigures(kv_usage_ratio=0.25, prefix_hits_total=7)
    assert figures(old + 'vllm:kv_cache_usage_perc{model_name="m"} 0.5\n').kv_usage_ratio == 0.5


def test_data_parallel_engines_are_added_up():
    """Counts and blocks of several engines are summed, the KV usage is the fullest one's, the block size is not summed."""
    text = "\n".join(
        f'vllm:num_requests_running{{engine="{i}"}} {i + 1}\n'
        f'vllm:kv_cache_usage_perc{{engine="{i}"}} 0.{i + 1}\n'
        f'vllm:cache_config_info{{block_size="16",engine="{i}",hash_block_size="99",num_gpu_blocks="100"}} 1'
        for i in range(3)
    )
    said = figures(text)
    assert (said.running, said.kv_usage_ratio, said.kv_blocks, said.block_size) == (6, 0.3, 300, 16)


@pytest.mark.parametrize(("awake", "asleep"), [("1.0", False), ("0.0", True)])
def test_sleep_state(awake: str, asleep: bool):
    """An engine that is not awake is asleep."""
    assert figures(f'vllm:engine_sleep_state{{engine="0",sleep_state="awake"}} {awake}').asleep is asleep


def test_one_sleeping_engine_of_two_makes_the_replica_asleep():
    """A request could land on the sleeping one."""
    text = "\n".join(f'vllm:engine_sleep_state{{engine="{i}",sleep_state="awake"}} {i}.0' for i in range(2))
    assert figures(text).asleep is True


@pytest.mark.parametrize("value", ["NaN", "+Inf", "-1", "many", "", "1e300"])
def test_a_senseless_value_is_unknown_not_zero(value: str):
    """What is no count stays None."""
    assert figures(f"vllm:num_requests_running {value}\n").running is None


def test_blocks_not_known_yet_are_unknown():
    """A page says "None" before the cache is sized, and 0 blocks would mean no room for ever."""
    assert figures('vllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0').kv_blocks is None
    assert figures('vllm:cache_config_info{block_size="16",num_gpu_blocks="0"} 1.0').kv_blocks is None


def test_usage_beyond_one_is_full():
    """A ratio never exceeds one, whatever an engine rounds to."""
    assert figures("vllm:kv_cache_usage_perc 1.0000001").kv_usage_ratio == 1.0


def test_awkward_labels_timestamps_and_exemplars():
    """Braces, spaces and quotes in label values do not hide the value; what follows the value is ignored."""
    assert figures('vllm:num_requests_running{model_name="a } b {\\" 5"} 3.0 1795476609000').running == 3
    assert figures('vllm:num_preemptions_total{e="0"} 4.0 # {trace_id="x"} 9.0').preemptions_total == 4


def test_names_that_only_begin_alike_do_not_count():
    """num_requests_waiting_by_reason splits up num_requests_waiting; adding it would count each request twice."""
    text = 'vllm:num_requests_waiting{e="0"} 2\nvllm:num_requests_waiting_by_reason{e="0",reason="capacity"} 2\n'
    assert figures(text).waiting == 2


@pytest.mark.parametrize(
    "text", ["", "<html>not found</html>", "\0" * 100, '{"detail":"Not Found"}', "vllm:", "vllm:{{{{"]
)
def test_pages_of_something_else(text: str):
    """Whatever a port answers, nothing is known from it and nothing is raised."""
    assert figures(text) == EngineFigures()


LINE = st.builds(
    lambda name, rest: name + rest,
    st.sampled_from(
        ["vllm:num_requests_running", "vllm:cache_config_info", "nv_inference_pending_request_count", "sglang:"]
    ),
    st.text(alphabet='{}="\\, 0123456789.eNa\r\n#_', max_size=40),
)


@given(st.lists(LINE | st.text(max_size=30), max_size=10).map("\n".join))
def test_garbage_never_raises(text: str):
    """Any text gives figures, each None or in its range."""
    said = figures(text)
    assert said.running is None or said.running >= 0
    assert said.kv_blocks is None or said.kv_blocks > 0
