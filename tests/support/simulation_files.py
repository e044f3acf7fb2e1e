"""Small traces and fleets that several tests write."""

from pathlib import Path

FLEETS = Path(__file__).resolve().parents[2] / "benchmarks" / "fleets"
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9305900,396,0
"""
MOONCAKE = """{"timestamp": 0, "input_length": 1024, "output_length": 5, "hash_ids": [0, 1]}
{"timestamp": 27482, "input_length": 1024, "output_length": 3, "hash_ids": [0, 1]}
"""
ONE = """replicas:
  - {name: a, backend: simulated, models: [m], gpu: {type: A100-80G}, capacity: {kv_blocks: 100}}
"""


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path
