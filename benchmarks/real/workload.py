"""What clients ask and when: a function of the seed, so that every policy is asked the same.

Open loop: arrivals are a Poisson process, however late the answers are. Prompts differ in their first words, so no prefix is shared.
No request carries a `seed`: vLLM 0.32 dies of one on a CPU as soon as a prompt takes two steps ("CPU Generator does not use offset").
So answers whose length is not told are as long as the engine draws them, each time anew.
"""

import random
from dataclasses import dataclass
from typing import Any, Final

from tests.real.vllm_server import MODEL

# Of prompt lengths in characters; the tiny model's tokenizer makes a token of 1.8. Most chats are short, a tenth brings a document.
_PROMPTS: Final = ((100, 250), (300, 600), (900, 1500))
_PROMPT_WEIGHTS: Final = (6, 3, 1)
_WORDS: Final = (
    "The",
    "gateway",
    "routes",
    "each",
    "request",
    "to",
    "the",
    "replica",
    "most",
    "likely",
    "to",
    "hold",
    "its",
)
BOUND_TOKENS: Final = 600  # what every client allows where none tells more
# Beside the model's own end of text, which a random model draws once in hundreds of tokens: answers end after 160 on average.
_STOP_TOKENS: Final = (10,)
_TOLD_MEDIAN, _TOLD_SIGMA, _TOLD_RANGE = (
    5.0,
    0.8,
    (16, BOUND_TOKENS),
)  # of exp(N(median, sigma)): 148 tokens, 200 on average
_WARM_UP: Final = 24  # requests, after which the tokenizer's characters per token are known


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One request. `at_s`: after the load's begin."""

    at_s: float
    body: dict[str, Any]


def workload(*, seed: int, requests: int, rate: float, told: bool) -> list[Ask]:
    """`told`: each client bounds its answer by its very length; else all allow the same and the engine ends it sooner."""
    draw = random.Random(seed)
    asks, at_s = [], 0.0
    for number in range(requests):
        at_s += draw.expovariate(rate)
        prompt = _prompt(f"{seed}-{number}:", draw)
        asks.append(Ask(at_s=at_s, body=_body(prompt, draw, told=told)))
    return asks


def warm_up(seed: int) -> list[Ask]:
    """Before anything is measured, the same for every policy: a gateway learns how many characters a token has."""
    draw = random.Random(-seed - 1)
    return [
        Ask(
            at_s=0.2 * number,
            body={**_common(_prompt(f"warm {seed}-{number}:", draw)), "max_tokens": 16},
        )
        for number in range(_WARM_UP)
    ]


def _prompt(name: str, draw: random.Random) -> str:
    [(shortest, longest)] = draw.choices(_PROMPTS, _PROMPT_WEIGHTS)
    chars = draw.randint(shortest, longest)
    text = name
    while len(text) < chars:
        text += " " + draw.choice(_WORDS)
    return text


def _body(prompt: str, draw: random.Random, *, told: bool) -> dict[str, Any]:
    if told:
        shortest, longest = _TOLD_RANGE
        tokens = round(min(max(draw.lognormvariate(_TOLD_MEDIAN, _TOLD_SIGMA), shortest), longest))
        return {**_common(prompt), "max_tokens": tokens, "ignore_eos": True}
    return {**_common(prompt), "max_tokens": BOUND_TOKENS, "stop_token_ids": list(_STOP_TOKENS)}


def _common(prompt: str) -> dict[str, Any]:
    return {
        "model": MODEL,
        "prompt": prompt,
        "temperature": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
