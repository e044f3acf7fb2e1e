"""`server.admin_port`: a second listener that has /admin and the board, while the main one has neither; one process or several."""

import re
import signal
import socket
from pathlib import Path

import pytest
import yaml

from tests.support.gateway_process import GatewayProcess, serving, started
from tests.support.raw_http import ask, connected, get

REPLICAS = [{"name": "sim", "backend": "simulated", "models": ["m"], "gpu": {"type": "A100-80G"}}]
_BOARD = re.compile(r"Board: (http://\S+)/ ")


def write(folder: Path, **server: object) -> Path:
    path = folder / "penstock.yaml"
    path.write_text(
        yaml.safe_dump({"server": {"host": "0.0.0.0", "drain_timeout_s": 60, **server}, "replicas": REPLICAS})
    )
    return path


async def admin_url(gateway: GatewayProcess) -> str:
    return (await gateway.until_log(_BOARD.pattern))[1]


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_admin_is_at_its_own_listener_only(tmp_path: Path, workers: str) -> None:
    """Each listener serves what is its own, and both end with the gateway's drain, also under a viewer that stays."""
    async with serving(write(tmp_path, admin_port=0), "--workers", workers) as gateway:
        admin = await admin_url(gateway)
        assert admin != gateway.url
        for path in ("/admin/replicas", "/admin/fleet", "/board"):
            assert (await ask(admin, get(path))).status == 200
            refused = await ask(gateway.url, get(path))
            assert refused.status == 404
            assert "server.admin_port" in refused.error["message"]
        for url in (admin, gateway.url):
            for path in ("/livez", "/metrics", "/v1/models"):
                assert (await ask(url, get(path))).status == 200
        async with connected(admin) as viewer:
            await viewer.send(get("/admin/live"))
            status, _ = await viewer.head()
            assert status == 200
            gateway.signal(signal.SIGTERM)
            assert await gateway.exit_code() == 0
            await viewer.rest_of_chunks()
    assert "Traceback" not in gateway.log


async def test_without_one_admin_is_at_the_main_listener(tmp_path: Path) -> None:
    """As it always was; the banner says where the board is."""
    async with serving(write(tmp_path, host="127.0.0.1")) as gateway:
        assert await admin_url(gateway) == gateway.url
        assert (await ask(gateway.url, get("/admin/replicas"))).status == 200


@pytest.mark.parametrize("workers", ["1", "2"])
async def test_an_address_in_use_is_told_by_its_setting(tmp_path: Path, workers: str) -> None:
    """Exit code 1, one line that names the setting, and no half of a gateway."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        path = write(tmp_path, admin_port=port)
        async with started("--config", str(path), "--port", "0", "--workers", workers) as gateway:
            assert await gateway.exit_code() == 1
            await gateway.until_log(
                f"127.0.0.1:{port} is in use by another process; choose another port as server.admin_port"
            )


async def test_two_listeners_need_two_ports(tmp_path: Path) -> None:
    """Said by its key path, before anything is bound."""
    async with started("--config", str(write(tmp_path, port=9090, admin_port=9090))) as gateway:
        assert await gateway.exit_code() == 78
        await gateway.until_log("server.admin_port: the same as `port`")
