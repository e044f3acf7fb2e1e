"""What the gateway's page says of TTFT, ITL and tokens is what a client measures of the same streams; by several workers, too.

The short form; 500 streams are in tests/bars.
"""

from pathlib import Path

import pytest

from tests.support.agreement import disagreements, fleet, load, miscounted

# A client that gets no core measures itself. A gateway that measures something else does so each time.
TRIES = 5


@pytest.mark.parametrize("workers", [1, 2])
async def test_the_page_says_what_the_client_saw(tmp_path: Path, workers: int) -> None:
    """Every token counted, quantiles within one bucket, streams of two engines begun over a second."""
    for _ in range(TRIES):
        async with fleet(tmp_path, engines=2, speed=0.2, workers=workers) as url:
            measured = await load(url, 40, tokens=16, over_s=1.0)
            assert miscounted(url, measured) == []
            found = disagreements(url, measured, (0.25, 0.5, 0.9))
        if not found:
            break
    assert found == []
