"""`penstock spot-agent`: reads flags, hands over. Heavy imports sit in the command, as in `router.cli`."""

import time
from typing import Annotated, Literal

import typer

from router.admin_flags import Key, known_key, known_url

ProviderChoice = Literal[
    "auto", "aws", "gcp", "azure"
]  # backends.spot_agent.notice.Provider, without loading it: a test keeps them in step

EXAMPLES = """\b
Examples:
  penstock spot-agent --gateway http://10.0.0.2:8080 --replica a100-spot --key env:PENSTOCK_ADMIN_KEY
      on the machine of the engine that the gateway calls a100-spot
  penstock spot-agent --gateway http://10.0.0.2:8080 --gateway http://10.0.0.3:8080 --replica a100-spot \\
                      --key file:/etc/penstock/admin.key --provider azure --exit-on-release
      two gateways; ends once both have let go, so that a supervisor may stop the engine

\b
Stop it with SIGTERM or Ctrl-C. docs/spot-agent.md has a systemd unit and a Kubernetes sidecar, and what each cloud sends.
"""


def spot_agent(
    *,
    gateway: Annotated[list[str], typer.Option("--gateway", metavar="URL", help="a gateway to tell; may be repeated")],
    replica: Annotated[str, typer.Option(metavar="NAME", help="what the gateways call the engine beside this")],
    provider: Annotated[ProviderChoice, typer.Option(help="the cloud; auto asks all three")] = "auto",
    key: Key = None,
    metadata_url: Annotated[
        str | None, typer.Option(metavar="URL", help="the cloud's metadata service, for tests  [default: its own]")
    ] = None,
    exit_on_release: Annotated[
        bool, typer.Option("--exit-on-release", help="end with code 0 once every gateway has let go of the machine")
    ] = False,
) -> None:
    """Tell the gateways when the cloud is about to take this machine."""
    from backends.spot_agent.notice import Provider  # noqa: PLC0415
    from backends.spot_agent.process import AgentOptions, run  # noqa: PLC0415

    if not replica.strip():
        raise typer.BadParameter("empty; name the replica as the gateway's configuration does", param_hint="--replica")
    options = AgentOptions(
        gateways=[known_url(url) for url in gateway],
        replica=replica,
        provider=None if provider == "auto" else Provider(provider),
        key=known_key(key),
        metadata_url=None if metadata_url is None else known_url(metadata_url, "--metadata-url"),
        exit_on_release=exit_on_release,
    )
    raise typer.Exit(run(options, time.time))  # noqa: TID251 - clouds say deadlines in wall time
