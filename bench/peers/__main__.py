"""Measures the peers and Headrace in interleaved rounds: `make bench-peers`, with ROUNDS=, PEERS=a,b and TASKS=."""

import argparse
import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench.peers.catalog import HEADRACE, PEERS, ROOT, Peer
from bench.peers.report import Figures, figures, tables
from bench.peers.rounds import Scope, once
from bench.peers.servers import missing
from bench.peers.versions import versions
from headrace_core.stack.errors import StackError
from headrace_core.telemetry import logs

RESULTS = ROOT / "bench" / "results"


class Run:
    """All rounds over all peers; what each gave is kept as it comes."""

    def __init__(self, peers: Sequence[Peer], tasks: int, folder: Path) -> None:
        self.figures: dict[str, list[Figures]] = {peer.name: [] for peer in peers}
        self.measured: list[dict[str, Any]] = []
        self.failed = False
        self._peers = list(peers)
        self._tasks = tasks
        self._folder = folder

    async def round(self, number: int) -> None:
        """Measure every peer once; another one is first in every round. A peer that fails does not end the others."""
        start = (number - 1) % len(self._peers)
        for peer in self._peers[start:] + self._peers[:start]:
            scope = Scope(self._tasks, self._folder / f"{number}-{peer.name}")
            try:
                answer = await once(peer, scope)
            except (StackError, OSError, TimeoutError) as error:
                self._fail(number, peer, error)
                continue
            found = figures(answer["measures"])
            self.figures[peer.name].append(found)
            self.measured.append({"peer": peer.name, "round": number, "figures": found, **answer})
            print(f"round {number}, {peer.name}: {_line(found)}", file=sys.stderr, flush=True)
            shutil.rmtree(scope.folder)

    def _fail(self, number: int, peer: Peer, error: Exception) -> None:
        self.failed = True
        self.figures[peer.name].append({})  # so that the rounds of all peers stay side by side
        self.measured.append({"peer": peer.name, "round": number, "error": str(error)})
        print(f"round {number}, {peer.name} failed: {error}", file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the file; 1 when a peer failed. One whose server is not there is left out."""
    options = _parser().parse_args(arguments)
    logs.configure("warning", "console", "bench")
    peers = _available(options.peers)
    started = datetime.now(UTC)
    folder = Path(tempfile.mkdtemp(prefix="headrace-peers-"))
    run = Run(peers, options.tasks, folder)
    target = RESULTS / f"{started:%Y%m%d-%H%M%S}-peers" / "results.json"
    target.parent.mkdir(parents=True)
    for number in range(1, options.rounds + 1):
        asyncio.run(run.round(number))
        # After each round: what was measured is not lost with what comes later.
        target.write_text(json.dumps(_document(run, options, started), indent=1) + "\n")
    print(tables(run.figures))
    print(f"written to {target.relative_to(ROOT)}", file=sys.stderr)
    if run.failed:
        print(f"the logs of what failed are in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return int(run.failed)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench.peers", description=__doc__)
    parser.add_argument("--peers", type=_chosen, default=PEERS, help="comma-separated; Headrace is always measured too")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", type=int, default=5000, help="in each measure; slow peers get fewer")
    return parser


def _chosen(text: str) -> tuple[Peer, ...]:
    names = {name for name in text.split(",") if name} | {HEADRACE}
    known = {peer.name for peer in PEERS}
    if names - known:
        raise argparse.ArgumentTypeError(
            f"{', '.join(sorted(names - known))}: unknown; there are {', '.join(sorted(known))}"
        )
    return tuple(peer for peer in PEERS if peer.name in names)


def _available(peers: Sequence[Peer]) -> list[Peer]:
    for sentence in (sentence for peer in peers for sentence in missing(peer)):
        print(sentence, file=sys.stderr)
    return [peer for peer in peers if not missing(peer)]


def _document(run: Run, options: argparse.Namespace, started: datetime) -> dict[str, Any]:
    settings = {
        peer.name: {
            "worker": peer.worker,
            "settings": dict(peer.settings),
            "latency_settings": dict(peer.latency_settings),
            "keeps": peer.keeps,
        }
        for peer in options.peers
    }
    return {
        "started": started.isoformat(timespec="seconds"),
        "rounds": options.rounds,
        "tasks": options.tasks,
        "versions": versions(),
        "peers": settings,
        "measured": run.measured,
    }


def _line(found: Figures) -> str:
    return ", ".join(f"{name} {value:,.2f}" for name, value in found.items())


if __name__ == "__main__":
    sys.exit(main())
