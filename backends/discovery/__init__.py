"""Which engines there are, from elsewhere than the configuration's own list (docs/discovery.md)."""
