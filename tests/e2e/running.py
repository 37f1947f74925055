"""The session's stack and the loop that owns it."""

import os
from dataclasses import dataclass
from pathlib import Path

from headrace_core.stack.dev import LocalStack
from tests.fixtures.loop_thread import LoopThread


@dataclass(frozen=True)
class RunningStack:
    """Parts can be killed and started again from tests that run on loops of their own."""

    stack: LocalStack
    loop: LoopThread

    def kill(self, name: str) -> None:
        """Kill -9 a part; it stays away until `start`."""
        self.loop.run(self.stack.kill_part(name))

    def stop(self, name: str) -> None:
        """SIGTERM a part and wait for its end."""
        self.loop.run(self.stack.stop_part(name))

    def start(self, name: str) -> None:
        """Start a part that was killed or stopped."""
        self.loop.run(self.stack.start_part(name))

    def consumer_of(self, worker: str) -> str:
        """The name of the consumer whose process id the worker's name carries."""
        pids = {str(service.pid): name for name, service in self.stack.services.items() if name.startswith("consumer")}
        found = [name for pid, name in pids.items() if pid in worker.replace(":", "/").replace("-", "/").split("/")]
        assert found, f"no consumer of {pids} is {worker}"
        return found[0]


def lines_of(ledger: Path) -> list[str]:
    """What the handlers noted so far."""
    return ledger.read_text(encoding="utf-8").splitlines()


def touch(path: Path) -> None:
    """Create a file: the signal that handlers wait for."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
