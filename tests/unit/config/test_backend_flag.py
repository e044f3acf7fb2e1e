"""The grammar of --backend."""

import pytest

from config.load import ConfigError, load, parse_backend_flag


def test_a_name_and_an_address_are_enough():
    """The scheme tells vLLM from Triton."""
    assert parse_backend_flag("a=http://h:1") == {"name": "a", "backend": "vllm", "url": "http://h:1"}
    assert parse_backend_flag("t=grpc://h:1,model=m") == {
        "name": "t",
        "backend": "triton",
        "url": "grpc://h:1",
        "models": ["m"],
    }


def test_every_option_has_its_place():
    """gpu, tier, usd, backend and any number of models become a replica as a file describes it."""
    flag = parse_backend_flag("a=https://h/v1,gpu=H100-80G,tier=spot,usd=1.25,backend=openai,model=x,model=y")
    (replica,) = load(None, {"replicas": [flag]}, {}).replicas
    assert (replica.url, replica.gpu.type, replica.cost.tier, replica.cost.usd_per_hour) == (
        "https://h/v1",
        "H100-80G",
        "spot",
        1.25,
    )
    assert (replica.backend, [model.name for model in replica.models]) == ("openai", ["x", "y"])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "write NAME=URL[,key=value]..., such as h100=http://127.0.0.1:8000,gpu=H100-80G,tier=reserved,usd=2.5"),
        (
            "http://h:1",
            "write NAME=URL[,key=value]..., such as h100=http://127.0.0.1:8000,gpu=H100-80G,tier=reserved,usd=2.5",
        ),
        (
            "=http://h:1",
            "write NAME=URL[,key=value]..., such as h100=http://127.0.0.1:8000,gpu=H100-80G,tier=reserved,usd=2.5",
        ),
        ("a=h:1", "the URL must begin with http://, https://, grpc://, grpcs://"),
        ("a=ftp://h:1", "the URL must begin with http://, https://, grpc://, grpcs://"),
        ("a=http://h:1,teir=spot", "unknown `teir`; did you mean `tier`?"),
        ("a=http://h:1,zzz=1", "unknown `zzz`; known: gpu, tier, usd, backend, model"),
        ("a=http://h:1,gpu", "`gpu` has no value; write gpu=VALUE"),
        ("a=http://h:1,gpu=", "`gpu` has no value; write gpu=VALUE"),
        ("a=http://h:1,gpu=A,gpu=B", "`gpu` is given twice; keep one"),
        ("a=http://h:1,gpu=A,gpu=A", "`gpu` is given twice; keep one"),
    ],
)
def test_malformed_flags_are_explained(text: str, why: str):
    """The flag is shown, and what to write instead."""
    with pytest.raises(ConfigError) as caught:
        parse_backend_flag(text)
    assert caught.value.problems == [f"--backend {text!r}: {why}"]
