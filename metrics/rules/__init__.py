"""Recording rules and alerts for Prometheus, written by hand; a test holds every name in them to the catalog (docs/alerts.md)."""
