"""What KV events cost a gateway that listens to none."""

import subprocess
import sys


def test_zeromq_is_loaded_late() -> None:
    """Importing the whole gateway does not load ZeroMQ."""
    program = (
        "import sys, router.gateway, router.engines; print([m for m in sys.modules if m.partition('.')[0] == 'zmq'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
