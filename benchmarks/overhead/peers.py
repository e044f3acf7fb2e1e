"""Other gateways: how each is installed and started before the same two engines. One entry a peer; a new one is one more.

All serve on 127.0.0.1 with one process or thread that relays, round robin, without access logs and telemetry; everything else as they come.
Where a default would make a peer open a connection for each request or hold chunks back, it is set so that it does not.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import yaml

from benchmarks.overhead.install import Debian, Install, Nowhere, Venv
from benchmarks.overhead.processes import Target


class UnsupportedError(Exception):
    """What is to be measured has no such mode; one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a target is started with."""

    port: int
    spare_port: int  # for metrics, where they want a port of their own
    engines: Sequence[int]  # ports
    model: str
    folder: Path  # its own, empty
    workers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """`target`: from how its program is called and a setup."""

    name: str
    install: Install
    target: Callable[[tuple[str, ...], Setup], Target]
    several_workers: bool = False  # whether it is measured with two processes, too


def _nginx(program: tuple[str, ...], setup: Setup) -> Target:
    servers = " ".join(f"server 127.0.0.1:{port};" for port in setup.engines)
    temporary = " ".join(
        f"{kind}_temp_path {setup.folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    file = setup.folder / "nginx.conf"
    file.write_text(f"""\
daemon off; pid {setup.folder}/nginx.pid; error_log stderr warn; worker_processes {setup.workers};
events {{ worker_connections 16384; }}
http {{
  access_log off; tcp_nodelay on; {temporary}
  keepalive_timeout 300; keepalive_requests 100000000;
  upstream engines {{ {servers} keepalive 2048; keepalive_timeout 300; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{setup.port} backlog=4096;
    location / {{
      proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off; proxy_read_timeout 300;
    }}
  }}
}}
""")
    command = (*program, "-p", str(setup.folder), "-e", "stderr", "-c", str(file))
    return Target(name="nginx", command=command, port=setup.port, ready_path="/health")


def _haproxy(program: tuple[str, ...], setup: Setup) -> Target:
    servers = "\n".join(f"  server e{port} 127.0.0.1:{port}" for port in setup.engines)
    file = setup.folder / "haproxy.cfg"
    file.write_text(f"""\
global
  nbthread 1
  maxconn 8000
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 300s
  option http-no-delay
  http-reuse always
frontend here
  bind 127.0.0.1:{setup.port} backlog 4096
  default_backend engines
backend engines
  balance roundrobin
{servers}
""")
    return Target(name="haproxy", command=(*program, "-db", "-f", str(file)), port=setup.port, ready_path="/health")


def _rust_router(name: str, *words: str, level: str = "warn") -> Callable[[tuple[str, ...], Setup], Target]:
    """vllm-router, sglang-router and smg have one ancestor and its flags."""

    def target(program: tuple[str, ...], setup: Setup) -> Target:
        flags = ("--host", "127.0.0.1", "--port", str(setup.port), "--prometheus-port", str(setup.spare_port))
        engines = ("--worker-urls", *(f"http://127.0.0.1:{port}" for port in setup.engines))
        rest = ("--policy", "round_robin", "--log-level", level)
        sub, options = [word for word in words if word[0] != "-"], [word for word in words if word[0] == "-"]
        command = (*program, *sub, *flags, *engines, *rest, *options)
        return Target(name=name, command=command, port=setup.port, ready_path="/health")

    return target


def _litellm(program: tuple[str, ...], setup: Setup) -> Target:
    models = [
        {
            "model_name": setup.model,
            "litellm_params": {
                "model": f"openai/{setup.model}",
                "api_base": f"http://127.0.0.1:{port}/v1",
                "api_key": "none",
            },
        }
        for port in setup.engines
    ]
    file = setup.folder / "litellm.yaml"
    config = {
        "model_list": models,
        "litellm_settings": {"telemetry": False},
        "general_settings": {"dangerously_permit_weak_or_unset_master_key": True},  # nobody else is measured with keys
    }
    file.write_text(yaml.safe_dump(config))
    quiet = ("env", "LITELLM_LOCAL_MODEL_COST_MAP=True", "LITELLM_LOG=ERROR", "LITELLM_MODE=PRODUCTION")
    flags = ("--config", str(file), "--host", "127.0.0.1", "--port", str(setup.port), "--num_workers", "1")
    return Target(
        name="litellm",
        command=(*quiet, *program, *flags),
        port=setup.port,
        ready_path="/health/liveliness",
    )


def _never(program: tuple[str, ...], setup: Setup) -> Target:
    raise UnsupportedError(f"{program} is not to be started on {setup.port}")


PEERS: Final = (
    Peer(
        name="nginx",
        install=Debian(packages=("nginx", "nginx-common"), program="nginx"),
        target=_nginx,
        several_workers=True,
    ),
    Peer(
        name="haproxy",
        install=Debian(
            packages=("haproxy", "liblua5.3-0", "libopentracing-c-wrapper0", "libopentracing1"), program="haproxy"
        ),
        target=_haproxy,
    ),
    Peer(
        name="vllm-router",
        install=Venv(requirement="vllm-router==0.1.17", program="vllm-router"),
        target=_rust_router("vllm-router", level="warning"),
    ),
    Peer(
        name="sglang-router",
        install=Venv(requirement="sglang-router==0.3.2", program="sglang-router"),
        target=_rust_router("sglang-router", "launch"),
    ),
    Peer(
        name="smg",
        install=Venv(requirement="smg==1.13.0", program="smg"),
        target=_rust_router("smg", "launch", "--disable-tokenizer-autoload"),
    ),
    Peer(
        name="litellm",
        # 1.109.1, the newest when this was written, asks for a version of litellm-proxy-extras that was never published.
        install=Venv(requirement="litellm[proxy]==1.106.2", program="litellm"),
        target=_litellm,
    ),
    Peer(
        name="production-stack",
        install=Nowhere(reason="not on PyPI; its distribution's name, vllm-router, is the Rust router's there"),
        target=_never,
    ),
)


def selected(said: str) -> tuple[Peer, ...]:
    """`all`, `none` or names with commas. ValueError names what there is."""
    if said in ("all", "none"):
        return PEERS if said == "all" else ()
    names = said.split(",")
    known = [peer.name for peer in PEERS]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no peer {', '.join(unknown)}; there are {', '.join(known)}")
    return tuple(peer for peer in PEERS if peer.name in names)
