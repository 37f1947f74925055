"""Three pictures of a run: each figure against its target, each round against its reference, CPU time by process.

Colours are those of Okabe and Ito, which stay apart for every sort of colour vision; text says the same again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.measure import Rounds
from bench.report import Row, median_of, number, said

REACHED, MISSED, NEUTRAL = "#0072B2", "#D55E00", "#999999"
PARTS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#F0E442", "#999999")
PLAIN = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}
WIDTH_INCHES = 8.0
ROW_INCHES = 0.34
DPI = 130
MARGIN = 1.5
GREATEST = 4.0
"""Of a figure beyond four times its target the bar ends here; the number beside it is the whole one."""


def draw(rows: Sequence[Row], samples: Mapping[str, Rounds], folder: Path) -> list[Path]:
    """Write the pictures that the run has figures for; returns their files."""
    drawn = [
        _targets([row for row in rows if row.reached is not None], folder / "targets.png"),
        _ratios([row for row in rows if row.ratio is not None], folder / "ratios.png"),
        _cpu(samples.get("end_to_end", ()), folder / "cpu.png"),
    ]
    return [file for file in drawn if file is not None]


def _targets(rows: Sequence[Row], file: Path) -> Path | None:
    """Bars of figure by target: beyond 1 is good where more is better, below 1 where less is."""
    if not rows:
        return None
    axes = _axes(len(rows), "figure by its target (the line)")
    for place, row in enumerate(rows):
        judged = row.value if row.ratio is None else row.ratio
        assert row.figure.target is not None
        length = _of_target(judged.median, row.figure.target.bound)
        colour = REACHED if row.reached else MISSED
        axes.barh(place, length, color=colour, height=0.6)
        verdict = "reached" if row.reached else "missed"
        text = f"{number(judged.median)} ({said(row.figure.target)}, {verdict})"
        axes.text(length + 0.05, place, text, va="center", fontsize=7, bbox=PLAIN)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xlim(0, GREATEST + MARGIN)
    return _saved(axes, [_name(row) for row in rows], file)


def _ratios(rows: Sequence[Row], file: Path) -> Path | None:
    """The range of the rounds as a line, the median as a dot."""
    if not rows:
        return None
    axes = _axes(len(rows), "ratio to the reference of the same round: median and range")
    for place, row in enumerate(rows):
        assert row.ratio is not None
        axes.plot([row.ratio.least, row.ratio.greatest], [place, place], color=NEUTRAL, linewidth=3)
        axes.plot(row.ratio.median, place, "o", color=REACHED)
        axes.annotate(
            number(row.ratio.median), (row.ratio.median, place), (0, 6), textcoords="offset points", fontsize=7
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    return _saved(axes, [_name(row) for row in rows], file)


def _cpu(rounds: Rounds, file: Path) -> Path | None:
    """CPU time for one task, by process: where the time of end_to_end goes."""
    runs = ("bare_loop", "one_consumer", "two_consumers")
    found = {run: median_of(rounds, f"cpu_{run}_") for run in runs}
    if not all(found.values()):
        return None
    axes = _axes(len(runs), "CPU time for one task, microseconds")
    names = sorted({name for parts in found.values() for name in parts})
    for number_, name in enumerate(names):
        before = [sum(found[run].get(other, 0.0) for other in names[:number_]) for run in runs]
        widths = [found[run].get(name, 0.0) for run in runs]
        axes.barh(range(len(runs)), widths, left=before, color=PARTS[number_ % len(PARTS)], height=0.6, label=name)
    axes.legend(fontsize=7, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.25))
    return _saved(axes, runs, file)


def _of_target(value: float, bound: float) -> float:
    if bound == 0:
        return 0.0 if value == 0 else GREATEST
    return min(value / bound, GREATEST)


def _name(row: Row) -> str:
    return f"{row.measure}.{row.figure.sample}" + (f" / {row.figure.per}" if row.ratio else "")


def _axes(rows: int, title: str) -> Axes:
    axes = Figure(figsize=(WIDTH_INCHES, 1.2 + ROW_INCHES * rows)).add_subplot()
    axes.set_title(title, fontsize=9, loc="left")
    return axes


def _saved(axes: Axes, labels: Sequence[str], file: Path) -> Path:
    axes.set_yticks(range(len(labels)), labels, fontsize=7)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(file, dpi=DPI, bbox_inches="tight")
    return file
