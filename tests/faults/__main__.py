"""`make faults`: real processes, real servers, faults, and a judgement.

Exit code 0: green, 1: red, 2: the run did not come to its end.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from headrace_core.stack.errors import StackError
from headrace_core.telemetry import logs
from tests.faults.broken.variants import VARIANTS
from tests.faults.report import how_to_repeat, lines
from tests.faults.run import run
from tests.faults.scenarios import SCENARIOS, mixture

SEEDS = 1_000_000


def say(line: str) -> None:
    """Write one line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> int:
    """Run as the arguments say; return the exit code."""
    chosen = _parser().parse_args(arguments)
    logs.configure("error", "console", "faults")
    if chosen.list:
        for scenario in SCENARIOS.values():
            say(f"{scenario.name:28} {scenario.about}")
        return 0
    seed = chosen.seed if chosen.seed is not None else random.SystemRandom().randrange(SEEDS)
    scenario = SCENARIOS[chosen.scenario] if chosen.scenario else mixture(seed, chosen.minutes, chosen.nodes)
    folder = chosen.folder or Path(tempfile.mkdtemp(prefix="headrace-faults-"))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    say(f"{scenario.name}: {scenario.about}; {scenario.seconds:.0f} s, seed {seed}, folder {folder}")
    try:
        outcome = asyncio.run(run(scenario, seed, folder.absolute(), say, broken=chosen.broken))
    except (StackError, TimeoutError, ExceptionGroup) as error:
        say("".join(traceback.format_exception(error)))
        say(f"the run did not come to its end, seed {seed}; see {folder}")
        return 2
    except KeyboardInterrupt:
        say(f"interrupted, seed {seed}; see {folder}")
        return 130
    for line in lines(outcome):
        say(line)
    if not outcome.is_green:
        for line in how_to_repeat(outcome, chosen.minutes, folder, chosen.broken):
            say(line)
    elif not chosen.keep and chosen.folder is None:
        shutil.rmtree(folder)
    return 0 if outcome.is_green else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="how long the load and the faults last (3)")
    parser.add_argument("--seed", type=int, help="decides faults and workload; a random one is printed")
    parser.add_argument("--nodes", type=int, default=1, choices=(1, 3), help="NATS servers of the mixture (1)")
    parser.add_argument("--scenario", choices=sorted(SCENARIOS), help="a named scenario in place of the mixture")
    parser.add_argument("--broken", default="", choices=("", *VARIANTS), help="run a deliberately broken variant")
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    parser.add_argument("--keep", action="store_true", help="keep the folder of a green run as well")
    parser.add_argument("--folder", type=Path, help="where to write; a temporary one unless given")
    return parser


if __name__ == "__main__":
    sys.exit(main())
