"""Grafana dashboards, made here and committed beside as JSON: `python -m metrics.dashboards` writes them (docs/dashboards.md).

Metric and label names come from the catalog, so a name that is not there raises when its dashboard is made. Nothing of the gateway
imports this.
"""
