"""Deterministic embeddings: signed feature hashing of tokens, so that texts sharing words point the same way."""

import math
from array import array
from collections.abc import Sequence

from backends.simulated.tokens import mix

DIMENSIONS = 64

_SALT = 0x5EED  # keeps these draws apart from the words'


def embed(ids: Sequence[int]) -> list[float]:
    """A unit vector of float32 values, the same in both encodings."""
    vector = [0.0] * DIMENSIONS
    for token in ids:
        bits = mix(_SALT, token)
        vector[bits % DIMENSIONS] += 1.0 if bits >> 63 else -1.0
    norm = math.sqrt(math.fsum(value * value for value in vector))
    if not norm:  # tokens that cancel out: any fixed direction will do
        return [1.0, *vector[1:]]
    return array("f", (value / norm for value in vector)).tolist()
