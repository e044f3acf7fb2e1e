"""What the Triton backend costs a gateway that has no Triton."""

import subprocess
import sys


def test_the_client_library_is_loaded_late() -> None:
    """Importing the backend loads neither gRPC nor numpy nor tritonclient."""
    program = "import sys, backends.triton; print([m for m in ('grpc', 'numpy', 'tritonclient') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
