"""Which policy is better, and when: a trace over a simulated fleet, in virtual time.

Reads flags, runs, prints, writes. README.md says what the figures do not show.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.provenance import provenance, today
from benchmarks.simulate.fleet import Machine, build_machines, model_of, read_fleet
from benchmarks.simulate.policies import Immediate, Penstock, Policy
from benchmarks.simulate.report import figures, show, wall_figures
from benchmarks.simulate.run import Simulation
from benchmarks.simulate.trace import Call, faster, read_trace, synthetic_trace
from config.problems import ConfigError
from config.schema import Config

POLICIES = ("penstock", "round_robin", "least_requests")
_SYNTHETIC_REQUESTS = 2000  # seconds of work; without --limit
_EXAMPLES = """\
examples:
  python -m benchmarks.simulate --fleet benchmarks/fleets/mixed.yaml
  python -m benchmarks.simulate --trace azure_2023_conv.csv --fleet benchmarks/fleets/mixed.yaml --rate-scale 20
  python -m benchmarks.simulate --fleet benchmarks/fleets/small_kv.yaml --policy round_robin --json result.json
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One run; together they name it."""

    fleet: Path
    trace: Path | None = None
    policy: str = "penstock"
    rate_scale: float = 1.0
    seed: int = 1
    limit: int | None = None
    max_output_tokens: int | None = None

    @property
    def name(self) -> str:
        trace = self.trace.stem if self.trace is not None else "synthetic"
        return f"policy={self.policy}/fleet={self.fleet.stem}/trace={trace}/rate=x{self.rate_scale:g}/seed={self.seed}"


def simulate(options: Options, wall: Callable[[], float] = time.perf_counter) -> dict[str, dict[str, object]]:
    """`figures` depend on the options alone, `wall` on this machine too. Raises ConfigError, OSError or ValueError."""
    config = read_fleet(options.fleet)
    machines = build_machines(config.replicas, options.seed)
    calls = faster(_calls(options), options.rate_scale)
    policy = _policy(options, config, machines)
    began = wall()
    observed = Simulation(calls, machines, policy, max_output_tokens=options.max_output_tokens, wall=wall).run()
    wall_s = wall() - began
    return {
        "figures": figures(observed, [call.prompt_tokens for call in calls], machines),
        "wall": wall_figures(observed, wall_s),
    }


def main(arguments: Sequence[str]) -> int:
    parser = _parser()
    said = parser.parse_args(arguments)
    out: Path | None = said.json
    options = Options(**{name: value for name, value in vars(said).items() if name != "json"})
    try:
        result = simulate(options)
    except ConfigError as error:
        parser.exit(78, f"{error}\n")
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(options.name)
    print(show(result["figures"]))
    print(show({f"wall {name}": value for name, value in result["wall"].items()}))
    if out is not None:
        document = {
            "benchmark": "simulate",
            "run": options.name,
            **provenance("benchmarks.simulate", arguments),
            "figures": result["figures"],
            "wall": {"date": today(), **result["wall"]},
        }
        out.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return 0


def _calls(options: Options) -> list[Call]:
    if options.trace is not None:
        return read_trace(options.trace, options.limit)
    return synthetic_trace(options.seed, options.limit or _SYNTHETIC_REQUESTS)


def _policy(options: Options, config: Config, machines: Sequence[Machine]) -> Policy:
    model = model_of(machines)
    if options.policy == "penstock":
        profiles = [machine.profile for machine in machines]
        return Penstock(config, profiles, model=model, max_output_tokens=options.max_output_tokens)
    return Immediate([machine.id for machine in machines], by_load=options.policy == "least_requests")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.simulate",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--fleet", type=Path, required=True, help="YAML with the gateway's `replicas:`")
    parser.add_argument("--trace", type=Path, help="Azure-style CSV or Mooncake-style JSONL  [default: synthetic]")
    parser.add_argument("--policy", choices=POLICIES, default="penstock", help="[default: %(default)s]")
    parser.add_argument(
        "--rate-scale", type=_positive, default=1.0, metavar="X", help="X times as many requests a second"
    )
    parser.add_argument(
        "--seed", type=_count, default=1, metavar="N", help="of step times and the synthetic trace; 0: exact times"
    )
    parser.add_argument("--limit", type=_count_from_1, metavar="N", help="the first N requests")
    parser.add_argument(
        "--max-output-tokens", type=_count_from_1, metavar="N", help="what clients ask for  [default: nothing]"
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the result here")
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError
    return value


def _count_from_1(text: str) -> int:
    if text == "0":
        raise ValueError
    return _count(text)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
