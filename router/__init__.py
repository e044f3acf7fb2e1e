"""The front door: OpenAI-compatible HTTP in and out, one request's life, the command line; wires the other rooms together."""
