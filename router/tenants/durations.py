"""Spans of time as people type them, and as OpenAI's headers show them. Pure."""

import re
from datetime import timedelta
from typing import Final

_UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_TYPED: Final = re.compile(r"(\d{1,6})([smhdw])")


def typed(text: str) -> timedelta:
    """`90d`, `24h`, `30m`; raises ValueError for others."""
    found = _TYPED.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no span of time; write 30m, 24h, 90d or 12w")
    return timedelta(seconds=int(found[1]) * _UNITS_S[found[2]])


def shown(seconds: float) -> str:
    """As Go prints a duration: `12ms`, `1.5s`, `6m0s`, `1h0m0s`."""
    milliseconds = max(0, round(seconds * 1e3))
    if milliseconds < 1000:
        return f"{milliseconds}ms" if milliseconds else "0s"
    whole, left = divmod(milliseconds, 60_000)
    last = f"{left / 1e3:g}s"
    if not whole:
        return last
    hours, minutes = divmod(whole, 60)
    return f"{hours}h{minutes}m{last}" if hours else f"{minutes}m{last}"
