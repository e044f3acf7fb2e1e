"""Our policy against baselines on two real vLLM engines (CPU, tiny model) of unequal KV cache, through our own gateway.

Policies take turns, each with a fresh gateway and the same requests, so that a machine's moods fall on all of them.
docs/benchmarks-real.md says what the figures do not show.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.provenance import provenance, today
from benchmarks.real.engines import Engine, engines
from benchmarks.real.measure import Figures, Observed, run_policy, together
from benchmarks.real.workload import warm_up, workload
from config.checks import BASELINE_POLICIES, OWN_POLICY

_EXAMPLES = """\
examples:
  python -m benchmarks.real
  python -m benchmarks.real --rate 4 --requests 300 --rounds 3 --json real.json
  python -m benchmarks.real --answers told --kv-blocks 512,256
  python -m benchmarks.real --tpot-s 0.001      # objectives that no engine can meet
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """All that is the same for every policy."""

    kv_blocks: tuple[int, ...]
    max_num_seqs: int
    rate: float
    requests: int
    rounds: int
    told: bool
    warm: bool
    seed: int
    objectives: Mapping[str, float]

    @property
    def name(self) -> str:
        said = {
            "kv_blocks": "+".join(map(str, self.kv_blocks)),
            "rate": f"{self.rate:g}",
            "requests": str(self.requests),
            "rounds": str(self.rounds),
            "answers": "told" if self.told else "untold",
            "seed": str(self.seed),
            **{name: f"{value:g}" for name, value in self.objectives.items()},
        }
        return "/".join(f"{name}={value}" for name, value in said.items())


def run(shape: Shape, policies: Sequence[str]) -> dict[str, list[Observed]]:
    """What was observed by policy, a run for each round. Raises RuntimeError where something does not start."""
    observed: dict[str, list[Observed]] = {policy: [] for policy in policies}
    with TemporaryDirectory() as name:
        folder = Path(name)
        with engines(shape.kv_blocks, max_num_seqs=shape.max_num_seqs, folder=folder) as running:
            for number in range(shape.rounds):
                # In turn, each round beginning with another.
                for policy in (*policies[number % len(policies) :], *policies[: number % len(policies)]):
                    one = _one(shape, policy, running, number, folder)
                    observed[policy].append(one)
                    _tell(f"round {number + 1}, {policy}", one)
    return observed


def _one(shape: Shape, policy: str, running: Sequence[Engine], number: int, folder: Path) -> Observed:
    seed = shape.seed + number
    return run_policy(
        running,
        policy,
        asks=workload(seed=seed, requests=shape.requests, rate=shape.rate, told=shape.told),
        first=warm_up(seed) if shape.warm else [],
        folder=folder,
        objectives=shape.objectives,
    )


def main(arguments: Sequence[str]) -> int:
    """1 if an answer was not whole."""
    parser = _parser()
    said = parser.parse_args(arguments)
    policies = list(dict.fromkeys(name.strip() for name in said.policies.split(",")))
    if unknown := [name for name in policies if name not in {OWN_POLICY, *BASELINE_POLICIES}]:
        parser.error(
            f"--policies: {unknown[0]!r} is no policy; there are {', '.join((OWN_POLICY, *BASELINE_POLICIES))}"
        )
    objectives = {"ttft_s": said.ttft_s, "tpot_s": said.tpot_s}
    shape = Shape(
        kv_blocks=said.kv_blocks,
        max_num_seqs=said.max_num_seqs,
        rate=said.rate,
        requests=said.requests,
        rounds=said.rounds,
        told=said.answers == "told",
        warm=not said.cold,
        seed=said.seed,
        objectives={name: value for name, value in objectives.items() if value is not None},
    )
    try:
        observed = run(shape, policies)
    except RuntimeError as error:
        parser.exit(1, f"{error}\n")
    figures = {policy: together(runs) for policy, runs in observed.items()}
    print(f"\n{shape.name}")
    _print(figures)
    if said.json is not None:
        _write(said.json, shape, arguments, observed, figures)
    return 0 if all(not column["errors"] for column in figures.values()) else 1


def _write(
    out: Path,
    shape: Shape,
    arguments: Sequence[str],
    observed: Mapping[str, Sequence[Observed]],
    figures: Mapping[str, Figures],
) -> None:
    document = {
        "benchmark": "real",
        "run": shape.name,
        **provenance("benchmarks.real", arguments),
        "figures": figures,
        "rounds": {policy: [together([one]) for one in runs] for policy, runs in observed.items()},
        "learned": {policy: [one.learned for one in runs] for policy, runs in observed.items()},
        "wall": {"date": today()},
    }
    out.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def _tell(what: str, one: Observed) -> None:
    column = together([one])
    rows = (
        "completed",
        "errors",
        "engine_preemptions",
        "ttft_p50_s",
        "ttft_p99_s",
        "output_tokens_per_s",
        "machine_load",
    )
    print(f"{what}: " + ", ".join(f"{row} {_cell(column[row])}" for row in rows), flush=True)
    for line in one.learned:
        factors = "; ".join(
            f"{name}: ttft x{extras['ttft_factor']:.2f} tpot x{extras['tpot_factor']:.2f} kv margin {extras['kv_margin']:.2f}"
            for name, extras in line["replicas"].items()
        )
        print(f"    after {line['placed']} placed  {factors}", flush=True)


def _print(figures: Mapping[str, Figures]) -> None:
    widths = [max(26, len(policy) + 2) for policy in figures]
    print(f"{'':<22}" + "".join(f"{policy:>{width}}" for policy, width in zip(figures, widths, strict=True)))
    for row in next(iter(figures.values())):
        cells = zip(figures.values(), widths, strict=True)
        print(f"{row:<22}" + "".join(f"{_cell(column[row]):>{width}}" for column, width in cells))


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {inner}" for key, inner in value.items()) or "none"
    return str(value)


def _blocks(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add: Any = parser.add_argument
    add("--policies", default="penstock,round_robin,least_requests", help="in turn  [default: %(default)s]")
    add("--rounds", type=int, default=2, help="of all policies in turn  [default: %(default)s]")
    add("--rate", type=float, default=3.0, help="requests a second, Poisson  [default: %(default)s]")
    add("--requests", type=int, default=150, help="a round  [default: %(default)s]")
    add(
        "--answers",
        choices=("untold", "told"),
        default="untold",
        help="whether clients bound their answers by its length",
    )
    add(
        "--kv-blocks",
        type=_blocks,
        default=(256, 128),
        metavar="N,M",
        help="of 32 tokens, an engine each  [default: 256,128]",
    )
    add("--max-num-seqs", type=int, default=32, help="an engine's  [default: %(default)s]")
    add("--ttft-s", type=float, help="objective  [default: the gateway's, 1 s]")
    add("--tpot-s", type=float, help="objective  [default: the gateway's, 0.1 s]")
    add("--cold", action="store_true", help="without the warm-up that teaches the gateway the tokenizer")
    add("--seed", type=int, default=1, help="of the first round  [default: %(default)s]")
    add("--json", type=Path, metavar="OUT", help="write the result here")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
