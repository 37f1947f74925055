"""`python -m bench`: run the measures in interleaved rounds, print a table, write JSON."""

from __future__ import annotations

import argparse
import asyncio
import importlib
import json
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

from bench import plots, report
from bench.environment import environment, load
from bench.measure import Measure, Samples, Scope, WrongResult
from bench.processes import OthersWatch
from headrace_core.stack.serving import StopOnSignal
from headrace_core.telemetry import logs

NAMES = (
    "end_to_end",
    "unary",
    "latency",
    "shards",
    "two_consumers",
    "idle",
    "memory",
    "watchers",
    "half_load",
    "backlog",
)
RESULTS = Path(__file__).parent / "results"
ROUNDS = 3
STOPPED = 130


def measures() -> dict[str, Measure]:
    """All of them, in the order in which a round runs them."""
    return {name: cast("Measure", importlib.import_module(f"bench.measures.{name}")) for name in NAMES}


class Run:
    """One run: the chosen measures, round by round, and what came out."""

    def __init__(self, chosen: Mapping[str, Measure], rounds: int, quick: bool) -> None:
        self._chosen = chosen
        self._rounds = rounds
        self._quick = quick
        self.samples: dict[str, list[Samples]] = {name: [] for name in chosen}
        self.others: dict[str, list[float]] = {name: [] for name in chosen}
        """Cores that other programs used meanwhile."""
        self.wrong: list[str] = []

    async def all(self) -> dict[str, Any]:
        """Run everything; returns the document for the file. A signal cancels it: everything started is stopped."""
        StopOnSignal().install()
        started = datetime.now(UTC)
        before = load()
        with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
            scope = Scope(Path(folder), self._quick)
            found = await environment(scope)
            await self.rounds(scope)
        return {
            "started": started.isoformat(timespec="seconds"),
            "ended": datetime.now(UTC).isoformat(timespec="seconds"),
            "quick": self._quick,
            "environment": found | {"load_before": before, "load_after": load()},
            "figures": [report.as_json(row) for row in self.rows()],
            "samples": self.samples,
            "cores_of_other_programs": self.others,
            "wrong": self.wrong,
        }

    async def rounds(self, scope: Scope) -> None:
        """Sample everything, round by round."""
        for number in range(1, self._rounds + 1):
            for name, measure in self._of_round(number):
                print(f"round {number} of {self._rounds}: {name}", file=sys.stderr, flush=True)
                await self._once(name, measure, scope)

    def _of_round(self, number: int) -> list[tuple[str, Measure]]:
        """What takes minutes is done once, unless it is all there is to do."""
        lasting = all(measure.ON_DEMAND for measure in self._chosen.values())
        return [item for item in self._chosen.items() if number == 1 or lasting or not item[1].ON_DEMAND]

    def rows(self) -> list[report.Row]:
        """The table's rows."""
        found: list[report.Row] = []
        for name, measure in self._chosen.items():
            found += report.rows(name, measure.FIGURES, self.samples[name])
        return found

    async def _once(self, name: str, measure: Measure, scope: Scope) -> None:
        others = OthersWatch()
        try:
            self.samples[name].append(await measure.once(scope))
        except WrongResult as error:
            self.wrong.append(f"{name}: {error}")
        except Exception as error:  # noqa: BLE001 - the others are worth having all the same; this one is told, and exit 1
            traceback.print_exc()
            self.wrong.append(f"{name} was not measured: {error!r}")
        self.others[name].append(others.cores())


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--only", default="", help="measures, separated by commas; see --list")
    parser.add_argument("--rounds", type=int, default=0, help=f"how often each (default {ROUNDS}; quick: 1)")
    parser.add_argument("--quick", action="store_true", help="check all in two minutes; figures say little")
    parser.add_argument("--details", action="store_true", help="print every sample, such as CPU time by process")
    parser.add_argument("--list", action="store_true", help="list the measures and end")
    parser.add_argument("--output", type=Path, help="folder for the results (default bench/results/<date-time>)")
    options = parser.parse_args(arguments)
    unknown = set(filter(None, options.only.split(","))) - set(NAMES)
    if unknown:
        parser.error(f"there is no measure {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    return options


def chosen(options: argparse.Namespace) -> dict[str, Measure]:
    """The measures to run: those that were named, else all that a run of this sort has."""
    wanted = set(filter(None, options.only.split(",")))
    return {
        name: measure
        for name, measure in measures().items()
        if (name in wanted if wanted else not (options.quick and measure.ON_DEMAND))
    }


def main(arguments: Sequence[str]) -> int:
    """Exit code 1 when a count or a result was wrong; never for a time."""
    options = parsed(arguments)
    if options.list:
        print("\n".join(f"{name:<14} {measure.WHAT}" for name, measure in measures().items()))
        return 0
    logs.configure("warning", "console", "bench")
    run = Run(chosen(options), options.rounds or (1 if options.quick else ROUNDS), options.quick)
    try:
        document = asyncio.run(run.all())
    except asyncio.CancelledError:
        return STOPPED
    folder = options.output or RESULTS / datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(report.table(run.rows()))
    if options.details:
        print("\n" + report.details(run.samples))
    plots.draw(run.rows(), run.samples, folder)
    print(f"\n{report.others(run.others)}\nwritten to {folder}")
    for wrong in run.wrong:
        print(f"WRONG: {wrong}", file=sys.stderr)
    return 1 if run.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
