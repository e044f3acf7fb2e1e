"""What the gateway's page says of TTFT, ITL and tokens is what a client measures of the same streams; by several workers, too.

The short form; 500 streams are in tests/bars.
"""

from pathlib import Path

import pytest

from tests.support.agreement import disagreements, fleet, load


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_page_says_what_the_client_saw(tmp_path: Path, workers: int) -> None:
    """Quantiles within one bucket, every token counted, streams of two engines begun over a second."""
    async with fleet(tmp_path, engines=2, speed=0.2, workers=workers) as url:
        measured = await load(url, 40, tokens=16, over_s=1.0)
        assert disagreements(url, measured, (0.25, 0.5, 0.9)) == []
