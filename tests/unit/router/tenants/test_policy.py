"""What keeps tenants' prompts apart."""

import subprocess
import sys

from router.tenants.policy import apart, cache_salt

SCRIPT = """
from router.openai.prompt import text_chunks
from router.tenants.policy import apart, cache_salt
print(text_chunks("m", ["Hello " * 200]), apart(cache_salt(b"pepper", "acme"), text_chunks("m", ["Hello " * 200])))
"""


def test_hashes_are_the_same_in_every_process():
    """What one gateway tells of a prompt's beginning another must find: neither kind of hash depends on the process."""
    told = {
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


def test_each_tenant_has_hashes_of_its_own():
    """Eight bytes each, other ones for each tenant and each pepper, and none that the plain prompt has."""
    chunks = tuple(range(2**63, 2**63 + 20))
    sets = [
        set(apart(cache_salt(pepper, tenant), chunks)) for pepper in (b"one", b"two") for tenant in ("acme", "zenith")
    ]
    every = set().union(chunks, *sets)
    assert len(every) == 5 * 20
    assert all(0 <= chunk < 2**64 for chunk in every)
