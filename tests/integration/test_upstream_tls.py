"""The pool over TLS: certificates are verified, a handshake that never comes is bounded."""

import ssl
from pathlib import Path

import pytest

from backends.backend import ConnectFailed
from backends.upstream.pool import Pool
from config.schema import Upstream
from tests.support.scripted_server import ScriptedServer, answer, answers, never_answers
from tests.support.wired import rest_of

# Made for these tests alone, for 127.0.0.1, signed by itself, valid for a hundred years.
CERTIFICATE = """\
-----BEGIN CERTIFICATE-----
MIIBkDCCATagAwIBAgIUOBT/P6TetiWG5ZVBZtOZneaY8CYwCgYIKoZIzj0EAwIw
FDESMBAGA1UEAwwJMTI3LjAuMC4xMCAXDTI2MTEyNDA0MDYzOVoYDzIxMjYxMDMx
MDQwNjM5WjAUMRIwEAYDVQQDDAkxMjcuMC4wLjEwWTATBgcqhkjOPQIBBggqhkjO
PQMBBwNCAAQcq4XfdauXwT0u1sB1hHmulp23wH0517rZ38D/zqt1frH1cFhHH3Sq
uwD4uo6aTZRoEeIdB0ma11NIchE+tcOeo2QwYjAdBgNVHQ4EFgQUxbRpljDx9+Ct
hj7qBpLI5ujurMIwHwYDVR0jBBgwFoAUxbRpljDx9+Cthj7qBpLI5ujurMIwDwYD
VR0TAQH/BAUwAwEB/zAPBgNVHREECDAGhwR/AAABMAoGCCqGSM49BAMCA0gAMEUC
IFV41zuhL7/oZG1Vx6WQWvLWn8SLdzA9lhebPsvUzOCeAiEA+u2afvvviimiR5IV
sZZwhfWsqvU+C9ctOzTAaJRqBSg=
-----END CERTIFICATE-----
-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgAchqT/aKX5yhmyE2
3HU2QHA6GJiCGCXMcblEdEmgUiyhRANCAAQcq4XfdauXwT0u1sB1hHmulp23wH05
17rZ38D/zqt1frH1cFhHH3SquwD4uo6aTZRoEeIdB0ma11NIchE+tcOe
-----END PRIVATE KEY-----
"""


@pytest.fixture
def server_tls(tmp_path: Path) -> ssl.SSLContext:
    path = tmp_path / "tls.pem"
    path.write_text(CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context


async def test_requests_over_tls_are_kept_alive(server_tls: ssl.SSLContext):
    """A trusted certificate: same behaviour as without TLS."""
    async with ScriptedServer(answers(answer(b"ok")), tls=server_tls) as server:
        pool = Pool(server.url, settings=Upstream(), tls=ssl.create_default_context(cadata=CERTIFICATE))
        for _ in range(2):
            assert await rest_of(await pool.send("POST", "/", headers={}, body=b"{}")) == b"ok"
        assert (server.connections, pool.statistics().idle) == (1, 1)
        await pool.aclose()


async def test_an_unknown_certificate_is_refused(server_tls: ssl.SSLContext):
    """Nothing is sent to an engine that cannot prove who it is."""
    async with ScriptedServer(answers(answer(b"ok")), tls=server_tls) as server:
        pool = Pool(server.url, settings=Upstream())
        with pytest.raises(ConnectFailed, match="TLS: self-signed"):
            await pool.send("POST", "/", headers={}, body=b"{}")
        assert server.requests == []
        await pool.aclose()


async def test_a_handshake_that_never_ends_is_a_failed_connection():
    """The connect timeout covers TLS: an engine that accepts and stays silent is not waited for."""
    async with ScriptedServer(never_answers) as server:
        pool = Pool(server.url.replace("http", "https"), settings=Upstream(connect_timeout_s=0.05))
        with pytest.raises(ConnectFailed, match="no connection within"):
            await pool.send("POST", "/", headers={}, body=b"{}")
        await pool.aclose()


async def test_plain_http_behind_an_https_url_is_a_failed_connection():
    """A wrong scheme is reported as what it is."""
    async with ScriptedServer(answers(answer(b"ok"))) as server:
        pool = Pool(server.url.replace("http", "https"), settings=Upstream(connect_timeout_s=0.5))
        with pytest.raises(ConnectFailed):
            await pool.send("POST", "/", headers={}, body=b"{}")
        await pool.aclose()
