"""How long a test waits for what must come."""

# Far beyond what anything takes on a machine that is slow and busy, and below pytest's own timeout, so that the wait says what it was for.
PATIENCE_S = 120.0
