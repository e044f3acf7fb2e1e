"""`/v1/models` from what the fleet says it serves, and the close matches of a name that it does not."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

OWNER = "penstock"
_MAX_NEAR = 3
_MAX_COMPARED_CHARS = 256  # the comparison is quadratic in length
_MAX_COMPARED_NAMES = 1000
_MIN_PART_CHARS = 3  # fewer are part of everything
_CUTOFF = 0.5  # generous: a wrong guess costs a glance, a missing one a search


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """One served name. `max_model_len` None: no replica said."""

    id: str
    kind: str  # config.schema.ModelKind's values
    max_model_len: int | None = None
    replicas: int = 1


def model_document(entry: ModelEntry, *, created: int = 0) -> dict[str, Any]:
    """OpenAI's Model object; `max_model_len` as vLLM names it, `context_length` as OpenRouter's clients read it."""
    return {
        "id": entry.id,
        "object": "model",
        "created": created,
        "owned_by": OWNER,
        "kind": entry.kind,
        "replicas": entry.replicas,
        "max_model_len": entry.max_model_len,
        "context_length": entry.max_model_len,
        "service_tiers": ["priority", "default", "flex"],
    }


def model_list(entries: Iterable[ModelEntry], *, created: int = 0) -> dict[str, Any]:
    return {"object": "list", "data": [model_document(entry, created=created) for entry in entries]}


def near(model: str, known: Iterable[str]) -> list[str]:
    """At most three served names that the client may have meant, the closest first; case and organisation count for little."""
    if len(model) > _MAX_COMPARED_CHARS:
        return []
    names = [name for _, name in zip(range(_MAX_COMPARED_NAMES), known, strict=False)]
    wanted = _bare(model)
    by_bare: dict[str, str] = {}
    for name in names:
        by_bare.setdefault(_bare(name), name)
    containing = sorted(
        (bare for bare in by_bare if len(wanted) >= _MIN_PART_CHARS and (wanted in bare or bare in wanted)), key=len
    )
    close: Sequence[str] = get_close_matches(wanted, by_bare, n=_MAX_NEAR, cutoff=_CUTOFF)
    return [by_bare[bare] for bare in dict.fromkeys([*containing, *close])][:_MAX_NEAR]


def _bare(name: str) -> str:
    return name[:_MAX_COMPARED_CHARS].rpartition("/")[2].lower()
