"""The offline simulator: a trace over a simulated fleet in virtual time, under the very scheduler that the gateway runs."""
