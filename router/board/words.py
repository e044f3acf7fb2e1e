"""Amounts and names as short as a terminal needs them (pure)."""


def clean(text: str) -> str:
    """What a client chose, without what would move a terminal's cursor."""
    return text if text.isprintable() else "".join(mark if mark.isprintable() else "?" for mark in text)


def duration(seconds: float | None) -> str:
    """As short as it can be told from others."""
    if seconds is None:
        return "-"
    if seconds < 0.01:
        return f"{seconds * 1e3:.1f} ms"
    return f"{seconds * 1e3:.0f} ms" if seconds < 1 else f"{seconds:.1f} s" if seconds < 60 else span(seconds)


def span(seconds: float) -> str:
    """Of a clock: seconds, minutes or hours."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def usd(amount: float) -> str:
    return f"${amount:.2f}" if amount < 100 else f"${amount:,.0f}"
