"""docs/metrics.md is what the catalog says, and every instrument has its advice."""

from pathlib import Path

from metrics.advice import ADVICE
from metrics.pages import instruments
from metrics.reference import page

DOCS = Path(__file__).resolve().parents[3] / "docs"


def test_the_page_is_up_to_date():
    """Whoever changes the catalog makes it again: `python -m metrics.reference > docs/metrics.md`."""
    assert (DOCS / "metrics.md").read_text() == page()


def test_every_instrument_has_advice_once():
    """What to do about it: one or two sentences, and none for what is not there."""
    given = [name for section in ADVICE.values() for name in section]
    assert sorted(given) == sorted(name for name, _ in instruments())
    for section in ADVICE.values():
        for name, advice in section.items():
            assert 10 < len(advice) < 320, name
            assert advice.endswith("."), name


def test_pages_that_are_linked_exist():
    """Advice that names a page names one that is there."""
    text = page()
    for part in text.split("docs/")[1:] + text.split("](")[1:]:
        name = part.split(")")[0].split(",")[0].split(" ")[0].removesuffix(".").removesuffix(":").removesuffix(";")
        if name.endswith(".md"):
            assert (DOCS / name).exists() or name == "cost.md", name
