"""From the measures of all rounds to figures, ratios and a table."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from bench.peers.catalog import HEADRACE, PEERS

Figures: TypeAlias = dict[str, float]
"""What one peer reached in one round, by the names of COLUMNS."""

COLUMNS = {
    "end_to_end": "one by one /s",
    "end_to_end_bulk": "bulk /s",
    "latency_p50": "p50 ms",
    "latency_p99": "p99 ms",
    "cpu": "CPU ms",
    "cpu_bulk": "CPU ms, bulk",
}
RATIOS = {
    "end_to_end": "one by one",
    "best": "best way",
    "latency_p50": "p50",
    "latency_p99": "p99",
    "cpu": "CPU",
    "cpu_best": "CPU, best way",
}
KEEPS = {peer.name: peer.keeps for peer in PEERS}
BUSY_CORES = 0.25


def figures(measures: Mapping[str, Any]) -> Figures:
    """Return the figures of one peer's round. Rates in tasks/s, times in ms, CPU in ms of one core for each task.

    `best` and `cpu_best` are those of the bulk call, or of one by one where there is none.
    """
    found: Figures = {}
    for name, cpu in (("end_to_end", "cpu"), ("end_to_end_bulk", "cpu_bulk")):
        if name in measures:
            sample = measures[name]
            found[name] = sample["tasks"] / sample["seconds"]
            found[cpu] = sum(sample["cpu"].values()) * 1000 / sample["tasks"]
    found["best"] = found.get("end_to_end_bulk", found["end_to_end"])
    found["cpu_best"] = found.get("cpu_bulk", found["cpu"])
    times = sorted(measures["latency"]["milliseconds"])
    found["latency_p50"] = statistics.median(times)
    found["latency_p99"] = times[min(len(times) - 1, int(len(times) * 0.99))]
    found["other_cores"] = max(sample["other_cores"] for sample in measures.values())
    return found


def ratios(ours: Sequence[Figures], theirs: Sequence[Figures], name: str) -> list[float]:
    """Return Headrace / peer of each round in which both were measured; rounds that failed are empty."""
    pairs = zip(ours, theirs, strict=True)
    return [our[name] / their[name] for our, their in pairs if name in our and name in their]


def tables(results: Mapping[str, Sequence[Figures]]) -> str:
    """Return both tables as Markdown: figures, then Headrace / peer. `results` has every peer's rounds, in order."""
    rows = [["queue", *COLUMNS.values(), "others, cores", "keeps"]]
    for name, rounds in results.items():
        cells = [summary([figure[column] for figure in rounds if column in figure]) for column in COLUMNS]
        rows.append([name, *cells, summary([figure["other_cores"] for figure in rounds if figure]), KEEPS[name]])
    text = _markdown(rows)
    if HEADRACE in results and len(results) > 1:
        text += "\nHeadrace / peer (more is better for rates, less for times and CPU):\n\n" + _markdown(
            _ratio_rows(results)
        )
    return text + _warning(results)


def _ratio_rows(results: Mapping[str, Sequence[Figures]]) -> list[list[str]]:
    rows = [["peer", *RATIOS.values()]]
    for name, rounds in results.items():
        if name != HEADRACE:
            rows.append([name, *(summary(ratios(results[HEADRACE], rounds, column)) for column in RATIOS)])
    return rows


def summary(values: Sequence[float]) -> str:
    """Return the median, and the range where there are several; a dash for nothing."""
    if not values:
        return "-"
    median = _short(statistics.median(values))
    return median if len(values) == 1 else f"{median} ({_short(min(values))} to {_short(max(values))})"


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _warning(results: Mapping[str, Sequence[Figures]]) -> str:
    busy = [
        name for name, rounds in results.items() if any(figure.get("other_cores", 0) > BUSY_CORES for figure in rounds)
    ]
    if not busy:
        return ""
    names = ", ".join(busy)
    return f"\nOther programs used more than {BUSY_CORES} cores in a round of: {names}. Read the ratios with care.\n"


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines) + "\n"
