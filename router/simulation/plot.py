"""Pictures of runs, as SVG: TTFT distribution, queues and KV usage over time, dollars by tier; policies over each other.

The only module that knows matplotlib, an optional extra: import it after `missing` has said nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Final

from router.simulation.curves import Band, Curves
from router.simulation.report import TTFT_S

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which people with any colour vision tell apart; line styles go on where they end. Ours is first.
_COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES: Final = ("-", "--", ":")
_TIER_COLOURS: Final = {"reserved": "#0072B2", "on_demand": "#E69F00", "spot": "#009E73"}
_SETTINGS: Final[Mapping[str, Any]] = {
    "svg.hashsalt": "penstock",  # else ids are random, and equal runs draw different files
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "font.size": 10,
    "legend.frameon": False,
}
_WIDTH_IN: Final = 8.0
_BARE_RUNS: Final = 3  # so many lines of KV usage are told apart as they are; more are smoothed to `_BLOCKS` points
_BLOCKS: Final = 60
_MINUTES_FROM_S: Final = 600.0  # longer runs have minutes on their axis


def missing() -> str | None:
    """What to install, or None."""
    return None if find_spec("matplotlib") else 'plots need matplotlib: pip install "penstock[plot]"'


def draw(runs: Sequence[Curves], folder: Path, suffix: str = ".svg") -> list[Path]:
    """Writes a picture a question into `folder`, which is made if need be; equal runs give equal bytes."""
    from matplotlib import rc_context  # noqa: PLC0415 - optional, and slow to load

    folder.mkdir(parents=True, exist_ok=True)
    pictures = {"ttft_cdf": _ttft, "queue_depth": _queues, "kv_usage": _kv, "usd_by_tier": _usd}
    paths = [folder / f"{name}{suffix}" for name in pictures]
    with rc_context(dict(_SETTINGS)):  # type: ignore[arg-type]  # it wants a literal of three hundred names
        for path, picture in zip(paths, pictures.values(), strict=True):
            picture(runs).savefig(path, bbox_inches="tight", metadata={"Date": None} if suffix == ".svg" else None)
    return paths


def _ttft(runs: Sequence[Curves]) -> "Figure":
    figure, (axes,) = _panels(1)
    for run, look in zip(runs, _looks(), strict=False):
        last = max(len(run.ttft_s) - 1, 1)
        reached = run.completed / run.requests
        shares = [100 * reached * rank / last for rank in range(len(run.ttft_s))]
        axes.plot(run.ttft_s, shares, label=run.policy, **look)
    axes.axvline(
        TTFT_S, color="#888888", linewidth=1, linestyle="-.", label=f"objective: {TTFT_S:g} s\n(short prompts)"
    )
    axes.set(xscale="log", xlabel="time to first token (s)", ylabel="of all requests (%)", ylim=(0, 101))
    axes.xaxis.set_major_formatter(lambda seconds, _: f"{seconds:g}")
    axes.set_title("Requests whose first token came within a time", loc="left")
    _legend(figure, axes)
    return figure


def _queues(runs: Sequence[Curves]) -> "Figure":
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - as above

    figure, (axes,) = _panels(1)
    unit, scale = _time_unit(runs)
    looks = _looks()
    for run in runs:
        times = [time / scale for time in run.times_s]
        lines = {run.policy: [a + b for a, b in zip(run.at_gateway, run.in_engines, strict=True)]}
        if len(runs) == 1:
            lines = {"at the gateway": list(run.at_gateway), "in the engines": list(run.in_engines)}
        for label, depths in lines.items():
            axes.plot(times, depths, label=label, **next(looks))
    axes.set(xlabel=f"time in the simulation ({unit})", ylabel="requests waiting")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title(
        "Queues" if len(runs) == 1 else "Requests waiting, at the gateway and in the engines together", loc="left"
    )
    _legend(figure, axes)
    return figure


def _kv(runs: Sequence[Curves]) -> "Figure":
    gpus = sorted({gpu for run in runs for gpu in run.kv_usage})
    figure, panels = _panels(len(gpus))
    unit, scale = _time_unit(runs)
    most = 0.0
    for gpu, axes in zip(gpus, panels, strict=True):
        for number, (run, look) in enumerate(zip(runs, _looks(), strict=False)):
            block = 1 if len(runs) <= _BARE_RUNS else -(-len(run.times_s) // _BLOCKS)
            times = _means([time / scale for time in run.times_s], block)
            low, middle, high = (_means(values, block) for values in _percent(run.kv_usage[gpu]))
            axes.plot(times, middle, label=f"{run.policy}, median", **look)
            most = max([most, *middle])
            if number == 0:  # bands of several would hide each other
                label = f"{run.policy}, 10th to 90th\npercentile of replicas"
                axes.fill_between(times, low, high, color=look["color"], alpha=0.2, linewidth=0, label=label)
                most = max([most, *high])
        axes.set(ylabel="KV blocks in use (%)")
        axes.set_xlim(left=0)
        axes.set_title(gpu, loc="left")
    for axes in panels:  # one scale: the types are to be compared
        axes.set_ylim(0, min(101.0, 1.05 * most) or 1.0)
    panels[-1].set_xlabel(f"time in the simulation ({unit})")
    _legend(figure, panels[0])
    return figure


def _usd(runs: Sequence[Curves]) -> "Figure":
    tiers = [tier for tier in _TIER_COLOURS if any(tier in run.usd_by_tier for run in runs)]
    alone = len(runs) == 1
    rows = [tier.replace("_", " ") for tier in tiers] if alone else [run.policy for run in runs]
    figure, (axes,) = _panels(1, height_in=1.2 + 0.32 * len(rows))
    paid = [0.0] * len(rows)
    for place, tier in enumerate(tiers):
        usd = [run.usd_by_tier.get(tier, 0.0) for run in runs]
        if alone:
            usd = [usd[0] if row == place else 0.0 for row in range(len(rows))]
        axes.barh(rows, usd, left=paid, height=0.7, color=_TIER_COLOURS[tier], label=tier.replace("_", " "))
        paid = [before + more for before, more in zip(paid, usd, strict=True)]
    for row, total in enumerate(paid):
        axes.annotate(f" {total:.3g}", (total, row), va="center")
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.1 * max(paid, default=0.0) or 1.0)
    axes.set_xlabel("US dollars for the run")
    axes.set_title(f"What the machines cost under {runs[0].policy}" if alone else "What the machines cost", loc="left")
    if not alone:
        _legend(figure, axes)
    return figure


def _panels(count: int, height_in: float = 3.8) -> "tuple[Figure, Sequence[Axes]]":
    from matplotlib.figure import Figure  # noqa: PLC0415 - without pyplot there is no global state and no window

    figure = Figure(figsize=(_WIDTH_IN, height_in if count == 1 else 2.2 * count), layout="constrained")
    panels = figure.subplots(count, 1, sharex=True, squeeze=False)
    return figure, [row[0] for row in panels]


def _looks() -> Iterator[dict[str, Any]]:
    for number, style in enumerate(cycle(_STYLES)):
        for place, colour in enumerate(_COLOURS):
            first = number == place == 0
            yield {"color": colour, "linestyle": style, "linewidth": 2.4 if first else 1.5, "zorder": 3 if first else 2}


def _legend(figure: "Figure", axes: "Axes") -> None:
    """Beside the lines, never over them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")


def _time_unit(runs: Sequence[Curves]) -> tuple[str, float]:
    last_s = max((run.times_s[-1] for run in runs if run.times_s), default=0.0)
    return ("minutes", 60.0) if last_s >= _MINUTES_FROM_S else ("s", 1.0)


def _means(values: Sequence[float], block: int) -> list[float]:
    return [fmean(values[start : start + block]) for start in range(0, len(values), block)]


def _percent(bands: Sequence[Band | None]) -> tuple[list[float], list[float], list[float]]:
    """Low, middle, high; nan, which leaves a gap, where there was no replica."""
    shown = [band or (float("nan"),) * 3 for band in bands]
    low, middle, high = ([100 * band[place] for band in shown] for place in range(3))
    return low, middle, high
