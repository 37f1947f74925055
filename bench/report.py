"""Statistics and the table: pure functions of the samples."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.measure import Figure, Rounds, Target

HEADINGS = ("figure", "median", "range", "unit", "ratio", "range", "of", "to reach", "")


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one round each: the median, the least and the greatest."""

    median: float
    least: float
    greatest: float


@dataclass(frozen=True, slots=True)
class Row:
    """A figure as measured. `ratio` is that of each round's sample to the same round's reference."""

    measure: str
    figure: Figure
    value: Spread
    ratio: Spread | None

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached, by the median; None without a target."""
        if self.figure.target is None:
            return None
        judged = self.value if self.ratio is None else self.ratio
        return self.figure.target.reached(judged.median)


def spread(values: Sequence[float]) -> Spread:
    """Median and range; raises ValueError for no values."""
    return Spread(statistics.median(values), min(values), max(values))


def median_of(rounds: Rounds, prefix: str) -> dict[str, float]:
    """The medians of all samples whose names begin with `prefix`, by the rest of the name."""
    names = dict.fromkeys(name for samples in rounds for name in samples if name.startswith(prefix))
    return {
        name.removeprefix(prefix): statistics.median(samples[name] for samples in rounds if name in samples)
        for name in names
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0 to 1) of `values` do not exceed: the nearest rank, no interpolation.

    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("a percentile of no values")
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * round(share * 10_000) // 10_000))
    return ordered[min(rank, len(ordered)) - 1]


def rows(measure: str, figures: Sequence[Figure], rounds: Rounds) -> list[Row]:
    """The figures that were sampled at all, in order."""
    return [row for figure in figures if (row := _row(measure, figure, rounds)) is not None]


def _row(measure: str, figure: Figure, rounds: Rounds) -> Row | None:
    values = [samples[figure.sample] for samples in rounds if figure.sample in samples]
    if not values:
        return None
    ratios = [
        samples[figure.sample] / samples[figure.per]
        for samples in rounds
        if figure.per is not None and figure.sample in samples and samples.get(figure.per)
    ]
    return Row(measure, figure, spread(values), spread(ratios) if ratios else None)


def table(found: Sequence[Row]) -> str:
    """The figures as text, columns aligned."""
    lines = [HEADINGS, *(_cells(row) for row in found)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join(
            _aligned(cell, width, column) for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def details(samples: Mapping[str, Rounds]) -> str:
    """Every sample, figure or not: name, median, range."""
    lines = []
    for measure, rounds in samples.items():
        for name in dict.fromkeys(name for one in rounds for name in one):
            values = spread([one[name] for one in rounds if name in one])
            lines.append(f"{measure}.{name:<40} {number(values.median):>10}  {_range(values)}".rstrip())
    return "\n".join(lines)


def others(cores: Mapping[str, Sequence[float]]) -> str:
    """What other programs took of the machine: rates suffer from it, CPU time for one task hardly."""
    seen = [f"{name} {statistics.median(values):.2f}" for name, values in cores.items() if values]
    return f"cores that other programs used meanwhile: {', '.join(seen) or 'nothing was measured'}"


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column in (1, 2, 4, 5) else cell.ljust(width)


def _cells(row: Row) -> tuple[str, ...]:
    ratio = row.ratio
    return (
        f"{row.measure}.{row.figure.sample}",
        number(row.value.median),
        _range(row.value),
        row.figure.unit,
        number(ratio.median) if ratio else "",
        _range(ratio) if ratio else "",
        (row.figure.per or "") if ratio else "",
        said(row.figure.target),
        {True: "yes", False: "no", None: ""}[row.reached],
    )


def _range(values: Spread) -> str:
    return "" if values.least == values.greatest else f"{number(values.least)}-{number(values.greatest)}"


def number(value: float) -> str:
    """Three significant digits, thousands in full."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def said(target: Target | None) -> str:
    """`>= 0.55`, `<= 4`, or nothing."""
    return "" if target is None else f"{'>=' if target.least else '<='} {target.bound:g}"


def as_json(row: Row) -> Mapping[str, Any]:
    """A row for the file."""
    return {"name": f"{row.measure}.{row.figure.sample}", **asdict(row), "reached": row.reached}
