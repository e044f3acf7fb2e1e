"""The offline simulator: the real scheduler and simulated engines, driven by a trace in virtual time."""
