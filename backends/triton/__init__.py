"""Triton over gRPC: decoupled LLM models re-shaped into OpenAI's streams, embedding models through a micro-batcher.

`backend` is the entry. Only `grpc_client` imports tritonclient (and with it grpc and numpy), and only a constructed replica
imports `grpc_client`: a gateway without Triton never pays for them.
"""

from backends.triton.backend import TritonBackend

__all__ = ["TritonBackend"]
