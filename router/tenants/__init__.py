"""Who asks, what they may, and how much of it: keys, tenants and their limits (docs/tenants.md)."""
