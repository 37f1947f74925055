"""The services as child processes: `python -m producer`, `-m consumer`, `-m status`."""

import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace_core.stack.child import Child
from headrace_core.stack.errors import StackError
from headrace_core.stack.logs import StackLog
from headrace_core.stack.ports import LOOPBACK

# A service gives up its own start after 60 s, and says why.
START_SECONDS = 75.0
GRACE_SECONDS = 20.0
# Beyond its grace period a service flushes and closes connections; then it is killed.
STOP_EXTRA_SECONDS = 15.0


@dataclass(frozen=True)
class Addresses:
    """Where a service that is ready serves: `host:port`, None for what it does not offer."""

    grpc: str | None
    ops: str | None
    http: str | None

    @classmethod
    def parse(cls, text: str) -> "Addresses":
        """Read a ready file. Raises ValueError when it is not one."""
        document = json.loads(text)
        if not isinstance(document, dict):
            raise ValueError(f"a JSON object was expected, not {text!r}")
        return cls(*(_without_scheme(document.get(name)) for name in ("grpc", "ops", "http")))


def _without_scheme(address: str | None) -> str | None:
    return None if address is None else address.removeprefix("http://").rstrip("/")


class Service:
    """One service process. Started again, it serves on the addresses of its first start.

    `name` tells processes of one service apart (`consumer-2`), `module` is what `python -m` runs. `environment` is
    all that the process sees. `grace` is what HEADRACE_GRACE_SECONDS says in it.
    """

    def __init__(
        self,
        name: str,
        module: str,
        environment: Mapping[str, str],
        log: StackLog,
        run_dir: Path,
        *,
        grace: float = GRACE_SECONDS,
        working_folder: Path | None = None,
    ) -> None:
        self.name = name
        self.module = module
        self.addresses = Addresses(None, None, None)
        self._environment = dict(environment)
        self._log = log
        self._ready_file = run_dir / f"{name}.ready"
        self._grace = grace
        self._working_folder = working_folder
        self._child: Child | None = None

    @property
    def pid(self) -> int | None:
        """Process id of the last start, None before the first."""
        return None if self._child is None else self._child.pid

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._child is not None and self._child.returncode is None

    async def start(self) -> None:
        """Start the process and wait until it has said that it serves. Raises StackError."""
        if self.running:
            return
        self._ready_file.unlink(missing_ok=True)
        environment = self._environment | _listen(self.addresses) | {"HEADRACE_READY_FILE": str(self._ready_file)}
        program = [sys.executable, "-m", self.module]
        self._child = await Child.spawn(
            self.name, program, self._log, environment=environment, working_folder=self._working_folder
        )
        try:
            await self._child.until(self._read_addresses, within=START_SECONDS, what="serving")
        except BaseException:
            await self._child.kill()
            raise

    async def stop(self) -> int | None:
        """Stop by SIGTERM, by SIGKILL beyond the grace period; return the exit code. Idempotent."""
        if self._child is None:
            return None
        return await self._child.stop(((signal.SIGTERM, self._grace + STOP_EXTRA_SECONDS),))

    async def kill(self) -> None:
        """Kill the process and its workers as a crash of the machine would."""
        if self._child is not None:
            await self._child.kill()

    def send(self, signal_number: signal.Signals) -> None:
        """Send a signal, such as SIGSTOP to freeze the process."""
        if self._child is not None:
            self._child.send(signal_number)

    async def wait(self) -> int:
        """Wait until the process ends and return its exit code."""
        assert self._child is not None, "wait() before start()"
        return await self._child.wait()

    def last_lines(self) -> str:
        """Return the last output as the end of an error message."""
        return "" if self._child is None else self._child.last_lines()

    def _read_addresses(self) -> bool:
        try:
            text = self._ready_file.read_text(encoding="utf-8")
        except FileNotFoundError:
            return False
        try:
            self.addresses = Addresses.parse(text)
        except ValueError as error:
            raise StackError(f"{self.name} wrote an unreadable ready file {self._ready_file}: {error}") from error
        return True


def _listen(addresses: Addresses) -> dict[str, str]:
    """Return the settings that make a restarted service serve where it did before; nothing at the first start."""
    variables = {
        "HEADRACE_LISTEN": addresses.grpc,
        "HEADRACE_OPS_LISTEN": addresses.ops,
        "HEADRACE_HTTP_LISTEN": addresses.http,
    }
    return {name: address for name, address in variables.items() if address is not None}


def inherited_environment(working_folder: Path) -> dict[str, str]:
    """Return our environment for a child: without the addresses of other stacks, and with our import path.

    Modules in the working folder stay importable, whatever PYTHONSAFEPATH says: that is where a handler module is
    looked for by whoever types `--handlers my_handlers`. A working folder that holds another package called
    `consumer` is noticed by the service itself.
    """
    ours = ("HEADRACE_LISTEN", "HEADRACE_OPS_LISTEN", "HEADRACE_HTTP_LISTEN", "HEADRACE_READY_FILE")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    path = [environment.get("PYTHONPATH", ""), str(working_folder)]
    environment["PYTHONPATH"] = os.pathsep.join(part for part in path if part)
    environment["PYTHONUNBUFFERED"] = "1"
    return environment


def loopback(port: int) -> str:
    """Return the listen address of a port, 0 for any free one."""
    return f"{LOOPBACK}:{port}"
