"""What the gateway costs, beside other gateways: CPU time a request and a relayed event, latency added, memory, and whether streams stay whole.

Installs the peers into environments of their own, gives each the same work in turn, round after round, and prints the tables.
README.md says what the figures do not show.
"""

import argparse
import itertools
import json
import resource
import signal
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.overhead.measure import Outcome, measure
from benchmarks.overhead.peers import UnsupportedError
from benchmarks.overhead.peers import selected as selected_peers
from benchmarks.overhead.programs import Programs
from benchmarks.overhead.report import Results
from benchmarks.overhead.scenarios import Scenario
from benchmarks.overhead.scenarios import selected as selected_scenarios
from benchmarks.overhead.targets import Contestant, contestants
from benchmarks.provenance import provenance, today
from benchmarks.tables import render

_EXAMPLES: Final = """\
examples:
  python -m benchmarks.overhead                                     all peers, all scenarios, three rounds
  python -m benchmarks.overhead --peers nginx,vllm-router --json overhead.json
  python -m benchmarks.overhead --peers none --scenario c64,s500 --rounds 1
  python -m benchmarks.overhead --no-install --scale 0.1            a look at whether it works
"""
_FAILURES: Final = 2  # then it is not started any more: each costs a minute
_CACHE: Final = Path.home() / ".cache" / "penstock"


def run(
    running: Sequence[Contestant], scenarios: Sequence[Scenario], programs: Programs, *, rounds: int, grace_s: float
) -> Results:
    """Round by round, scenario by scenario, each in turn: a machine's moods fall on all."""
    results = Results(scenarios=scenarios, names=[one.name for one in running])
    failures = Counter[str]()
    turns = itertools.product(range(1, rounds + 1), scenarios, running)
    try:
        for number, scenario, one in turns:
            if one.takes(scenario) and failures[one.name] < _FAILURES:
                _tell(f"round {number}/{rounds} {scenario.name:9} {one.name:17}", end=" ")
                failures[one.name] += not _tried(results, one, scenario, programs, grace_s)
    except KeyboardInterrupt:
        _tell("\ninterrupted; this was measured before:")
    return results


def _tried(results: Results, one: Contestant, scenario: Scenario, programs: Programs, grace_s: float) -> bool:
    """Whether there are figures, or are to be none."""
    try:
        outcome = measure(one, scenario, programs, grace_s=grace_s)
    except UnsupportedError as why:
        _tell(f"- {why}")
        results.add_problem(one.name, scenario, str(why))
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        problem = " ... ".join(dict.fromkeys([lines[0], lines[-1]]))  # of a log the end says why
        _tell(f"FAILED: {problem}")
        results.add_problem(one.name, scenario, problem)
        return False
    else:
        _tell(_brief(outcome))
        results.add(one.name, scenario, outcome)
    return True


def main(arguments: Sequence[str]) -> int:
    """1 if an answer of ours was not whole or something cannot be started."""
    parser = _parser()
    said = parser.parse_args(arguments)
    try:
        peers = selected_peers(said.peers)
        scenarios = list(selected_scenarios(said.scenario.split(",") if said.scenario else (), said.scale))
    except ValueError as error:
        parser.error(str(error))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    _many_files()
    try:
        programs = Programs.compiled(said.cache / "programs")
    except RuntimeError as error:
        parser.exit(1, f"{error}\n")
    made = provenance("benchmarks.overhead", arguments)  # now: files may change before the end
    running, absent = contestants(peers, said.cache / "peers", install=not said.no_install, compiled=said.compiled)
    results = run(running, scenarios, programs, rounds=said.rounds, grace_s=said.grace)
    documents = _documents(results, running, absent, made)
    print(render(documents))
    if said.json is not None:
        said.json.write_text(json.dumps(documents, indent=2) + "\n", "utf-8")
    return 0 if results.ours_is_whole() else 1


def _documents(
    results: Results, running: Sequence[Contestant], absent: Mapping[str, str], made: Mapping[str, object]
) -> list[dict[str, Any]]:
    """One a table, as benchmarks.tables reads them."""
    versions = ", ".join(f"{one.name} {one.version}" for one in running if one.version)
    parts: list[tuple[str, Mapping[str, Any], list[str]]] = [
        ("overhead", results.table(), [versions, *results.notes(absent)]),
        ("overhead: shares of a core that engines and load used", results.machinery(), []),
        ("overhead: least and greatest of the rounds", results.spread(), []),
    ]
    documents: list[dict[str, Any]] = [
        {"benchmark": "overhead", "run": name, **made, "figures": figures, "notes": notes, "wall": {"date": today()}}
        for name, figures, notes in parts
    ]
    documents[0]["rounds"] = results.raw()
    return documents


def _brief(outcome: Outcome) -> str:
    figures = outcome.figures
    shown = ("cpu_us", "latency_p50_ms", "ttft_p99_ms", "itl_p99_ms", "rss_kb_per_connection", "whole")
    words = [f"{name} {value:.4g}" for name in shown if (value := figures.get(name)) is not None]
    bad = [f"{name} {value:.0f}" for name in ("not_whole", "errors", "unfinished") if (value := figures[name])]
    return "  ".join([*words, *bad, *([outcome.problem] if outcome.problem else [])])


def _tell(text: str, end: str = "\n") -> None:
    print(text, end=end, file=sys.stderr, flush=True)


def _many_files() -> None:
    """Two thousand streams are four thousand connections of a gateway, which inherits this."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--peers", default="all", help="all, none, or names with commas  [default: %(default)s]")
    parser.add_argument("--scenario", default="", metavar="NAMES", help="with commas  [default: all]")
    parser.add_argument("--rounds", type=int, default=3, help="of all in turn  [default: %(default)s]")
    parser.add_argument("--scale", type=float, default=1.0, help="of connections, events, seconds  [default: 1]")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds that late answers get  [default: 10]")
    parser.add_argument("--no-install", action="store_true", help="only peers that are there already")
    parser.add_argument(
        "--compiled", type=Path, metavar="PYTHON", help="ours, too, by a Python that has the wheel of `make wheel`"
    )
    parser.add_argument("--cache", type=Path, default=_CACHE, help="of programs and peers  [default: %(default)s]")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the result here, for benchmarks.tables")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
