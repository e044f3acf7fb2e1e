"""What an engine's prefix cache holds, as vLLM tells it over ZeroMQ: messages, their order, and the sockets."""
