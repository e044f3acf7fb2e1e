"""Our policy against baselines on two real vLLM engines, through our own gateway: `python -m benchmarks.real`."""
