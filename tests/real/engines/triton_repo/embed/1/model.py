"""A hashing embedding of 64 dimensions: the same text gives the same unit vector, alone or in any batch.

A row that holds [[bad]] fails its request with INVALID_ARG; one that holds [[slow]] makes its batch take half a second.
"""

import time
import zlib

import numpy as np
import triton_python_backend_utils as pb_utils

DIMENSIONS = 64


def embed(text):
    vector = np.zeros(DIMENSIONS, dtype=np.float32)
    for word in text.lower().split():
        code = zlib.crc32(word)
        vector[code % DIMENSIONS] += 1.0 if (code >> 8) & 1 else -1.0
        vector[(code >> 16) % DIMENSIONS] += 0.5
    norm = float(np.linalg.norm(vector))
    return vector / norm if norm else vector


class TritonPythonModel:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy().reshape(-1)
        if any(b"[[bad]]" in text for text in texts):
            error = pb_utils.TritonError("a row cannot be embedded", pb_utils.TritonError.INVALID_ARG)
            return pb_utils.InferenceResponse(error=error)
        if any(b"[[slow]]" in text for text in texts):
            time.sleep(0.5)
        rows = np.stack([embed(text) for text in texts])
        return pb_utils.InferenceResponse(output_tensors=[pb_utils.Tensor("embedding", rows)])
