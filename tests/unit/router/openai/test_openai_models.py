"""The models document, and the names that a client may have meant."""

import pytest

from router.openai.models import ModelEntry, model_document, model_list, near
from router.openai.shapes import ModelList


def test_compat_18_the_models_document() -> None:
    """OpenAI's members, both names of the context length, and null where no replica said."""
    entries = [
        ModelEntry(id="org/a", kind="chat", max_model_len=4096, replicas=2),
        ModelEntry(id="b", kind="embedding"),
    ]
    document = model_list(entries, created=1_700_000_000)
    assert ModelList.model_validate(document).data[0].id == "org/a"
    assert document["data"][0] == {
        "id": "org/a",
        "object": "model",
        "created": 1_700_000_000,
        "owned_by": "penstock",
        "kind": "chat",
        "replicas": 2,
        "max_model_len": 4096,
        "context_length": 4096,
        "service_tiers": ["priority", "default", "flex"],
    }
    assert model_document(entries[1])["context_length"] is None


KNOWN = ["meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B", "bge-small", "tiny"]


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        ("llama-3.1-8b-instruct", KNOWN[0]),
        ("Llama-3.1-8B", KNOWN[0]),
        ("meta-llama/Lama-3.1-8B-Instruct", KNOWN[0]),
        ("qwen2.5-7b", KNOWN[1]),
        ("BGE_small", KNOWN[2]),
        ("tiny-model", KNOWN[3]),
    ],
)
def test_compat_20_a_near_miss_is_recognised(asked: str, first: str) -> None:
    """Case, organisation and a slip of the finger do not hide the model that was meant."""
    assert near(asked, KNOWN)[0] == first


@pytest.mark.parametrize("asked", ["gpt-4o", "", "x" * 10_000, "zz"])
def test_what_is_near_nothing_has_no_matches(asked: str) -> None:
    """No guess rather than a wrong one; a name of kilobytes is not even compared."""
    assert near(asked, KNOWN) == []


def test_matches_are_few() -> None:
    """Three names help, thirty do not."""
    assert len(near("model-1", [f"model-{i}" for i in range(50)])) == 3
