"""Ports for processes that are told where to listen, and do so only once they have started: nobody may take one in between."""

import secrets
import socket

# Below those that the kernel gives to whoever asks for any (32768 and more on Linux), so that no other socket gets one by chance.
_FIRST, _COUNT = 20_000, 12_000
_TRIES = 1000
_CLAIMS: list[socket.socket] = []  # until this process ends


def free_port() -> int:
    """Where nobody listens now, and which no other test of this machine is given as long as this process lives."""
    for _ in range(_TRIES):
        port = _FIRST + secrets.randbelow(_COUNT)
        if _claimed(port) and _free(port):
            return port
    raise RuntimeError(f"{_TRIES} ports from {_FIRST} on are taken")


def _claimed(port: int) -> bool:
    """By a name that the kernel keeps for one process and frees with it."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        claim.bind(f"\0penstock-test-port-{port}")
    except OSError:
        claim.close()
        return False
    _CLAIMS.append(claim)
    return True


def _free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
