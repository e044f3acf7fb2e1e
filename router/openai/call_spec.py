"""What the gateway knows of a call once it has read it. A module of its own: `router.openai.request`, which makes it, can be compiled, msgspec's classes cannot."""

import msgspec

from batching.request import ServiceTier
from config.schema import ModelKind
from router.openai.prompt import CHUNK_CHARS


class CallSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway knows of a call from its body and headers."""

    model: str
    kind: ModelKind
    stream: bool = False
    include_usage: bool = False  # the client asked for the usage chunk
    collected: bool = False  # the engine streams it, the client gets it whole
    n: int = 1  # choices the answer will have: the client's `n` for each of its prompts
    max_output_tokens: int | None = None  # a choice; None: up to the context
    prompt_chars: int = 0
    prompt_token_count: int | None = None  # exact, where the prompt came as token ids
    prefix_chunks: tuple[int, ...] = ()
    prefix_chunk_chars: int = CHUNK_CHARS
    prefix_chunk_tokens: int | None = None  # exact, where the prompt came as token ids
    service_tier: ServiceTier = ServiceTier.DEFAULT
    affinity_key: str | None = None
    tenant: str | None = None
    tenant_class: str | None = None  # as a label of metrics
    weight: float = 1.0  # its tenant's
    trusted: bool = False  # by whose key it is: risky members go through
    cache_salt: str | None = None  # with which engines keep its tenant's prefix cache apart

    @property
    def strip_usage(self) -> bool:
        """The usage chunk was asked for by the gateway, not by the client, and must not reach it."""
        return self.stream and not self.include_usage and not self.collected
