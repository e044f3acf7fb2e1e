"""`python -m metrics.rules`: prints the rules as one PrometheusRule, for clusters with the Prometheus operator.

What is printed is committed as deploy/kubernetes/monitoring/prometheusrule.yaml.
"""

import sys
from textwrap import indent
from typing import Final

from metrics.rules.recorded import RULES

_HEAD: Final = """\
# The rules of metrics/rules for the Prometheus operator; made by: python -m metrics.rules
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: penstock
  labels:
    app.kubernetes.io/name: penstock
    app.kubernetes.io/component: monitoring
spec:
  groups:
"""


def prometheus_rule() -> str:
    """The files as they are, comments included, one level further in."""
    groups = (path.read_text().split("\ngroups:\n", 1)[1] for path in sorted(RULES.glob("*.yml")))
    return _HEAD + "\n".join(indent(text, "  ") for text in groups)


if __name__ == "__main__":
    sys.stdout.write(prometheus_rule())
