"""Several processes that are one gateway: who starts them, what they share, what they ask one another (docs/workers.md)."""
