"""The simulated engine: one model of continuous batching, served in process, over HTTP and under virtual time."""
