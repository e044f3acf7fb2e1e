"""Under 500 concurrent streams the page's TTFT and ITL are the client's within one bucket, and tokens are exact."""

from pathlib import Path

import pytest

from tests.support.agreement import disagreements, fleet, load, miscounted

pytestmark = [pytest.mark.bars, pytest.mark.timeout(900)]


@pytest.mark.parametrize("workers", [1, 2])
async def test_500_streams(tmp_path: Path, workers: int) -> None:
    """Begun over five seconds, each longer than that: all of them run at once."""
    async with fleet(tmp_path, engines=4, speed=0.05, workers=workers) as url:
        measured = await load(url, 500, tokens=50, over_s=5.0)
        assert miscounted(url, measured) == []
        assert disagreements(url, measured, (0.5, 0.9, 0.95, 0.99)) == []
