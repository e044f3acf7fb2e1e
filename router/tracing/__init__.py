"""Requests as OpenTelemetry traces: noted while they run, made into spans at their end, exported beside the loop."""
