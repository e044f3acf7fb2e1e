"""Reads figures off a /metrics page as text: a full Prometheus parser takes longer than the things that tests watch."""

import urllib.request

from tests.support.patience import PATIENCE_S


def metric(url: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples that have these labels; 0 where there is none."""
    return from_page(page(url), name, **labels)


def page(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        text: str = answer.read().decode()
    return text


def from_page(text: str, name: str, **labels: str) -> float:
    """The same, of a page that was read already."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    samples = [line for line in text.splitlines() if line.startswith((name + "{", name + " "))]
    return sum(float(line.rsplit(" ", 1)[1]) for line in samples if all(w in line for w in wanted))
