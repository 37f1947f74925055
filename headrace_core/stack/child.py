"""One child process: started tied to us, its output pumped into the log, stopped within a limit."""

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from headrace_core.stack.errors import StackError
from headrace_core.stack.logs import StackLog

LINE_LIMIT = 16 * 1024
TAIL_LINES = 12
KILL_WAIT_SECONDS = 10.0
PUMP_WAIT_SECONDS = 2.0
POLL_SECONDS = 0.02
BOUND_EXEC = Path(__file__).with_name("bound_exec.py")


class Child:
    """A running process. Its output goes to the log by lines; the last ones are kept for error messages."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: StackLog) -> None:
        self.name = name
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._process = process
        self._log = log
        self._pump = asyncio.create_task(self._pump_output(), name=f"{name}-output")

    @classmethod
    async def spawn(
        cls,
        name: str,
        program: Sequence[str],
        log: StackLog,
        *,
        environment: Mapping[str, str] | None = None,
        death_signal: signal.Signals = signal.SIGKILL,
        pass_fds: Sequence[int] = (),
        working_folder: Path | None = None,
    ) -> "Child":
        """Start `program` in a session of its own, so that Ctrl-C at the terminal reaches only us.

        `death_signal` is what the child gets when we are killed. `pass_fds` stay open in the child.
        """
        bound = [sys.executable, "-I", "-S", str(BOUND_EXEC), str(os.getpid()), str(int(death_signal))]
        process = await asyncio.create_subprocess_exec(
            *bound,
            *program,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=None if environment is None else dict(environment),
            start_new_session=True,
            pass_fds=pass_fds,
            cwd=working_folder,
            limit=LINE_LIMIT,
        )
        return cls(name, process, log)

    @property
    def pid(self) -> int:
        """Process id, which stays the same through bound_exec."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal, None while running."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for the end, however long it takes, and return the exit code."""
        return await self._process.wait()

    async def until(self, condition: Callable[[], bool], *, within: float, what: str) -> None:
        """Wait until `condition()` holds.

        Raises StackError when the process ends first or `within` seconds pass; both quote the last log lines.
        """
        deadline = asyncio.get_running_loop().time() + within
        while not condition():
            if self.returncode is not None:
                await self._finish_pump()
                raise StackError(
                    f"{self.name} ended ({describe_exit(self.returncode)}) before {what}{self.last_lines()}"
                )
            if asyncio.get_running_loop().time() > deadline:
                raise StackError(f"{self.name} is not ready after {within:.0f} s: waited for {what}{self.last_lines()}")
            await asyncio.sleep(POLL_SECONDS)  # a file of another process can only be polled

    def last_lines(self) -> str:
        """Return the last output as the end of an error message, empty when there was none."""
        if not self.tail:
            return ""
        return "; its last lines:\n  " + "\n  ".join(self.tail)

    def send(self, signal_number: signal.Signals) -> None:
        """Send a signal; a process that has ended gets none."""
        if self.returncode is None:
            self._process.send_signal(signal_number)

    async def stop(self, phases: Sequence[tuple[signal.Signals, float]]) -> int:
        """Send each phase's signal and wait its seconds, then kill the whole process group. Idempotent.

        Cancelling it kills at once.
        """
        try:
            for signal_number, seconds in phases:
                self.send(signal_number)
                if await self._ended_within(seconds):
                    break
                self._log.line("stack", f"{self.name} ignored {signal_number.name} for {seconds:.0f} s")
        finally:
            self._kill_group()
        return await self._reap()

    async def kill(self) -> int:
        """Kill the process and everything in its group; return the exit code."""
        self._kill_group()
        return await self._reap()

    async def _reap(self) -> int:
        async with asyncio.timeout(KILL_WAIT_SECONDS):
            code = await self._process.wait()
        await self._finish_pump()
        return code

    async def _ended_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._process.wait()
        except TimeoutError:
            return False
        return True

    def _kill_group(self) -> None:
        # The child leads its own session, so its id is the group's: workers of a dead service go with it.
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return  # the group is empty; macOS answers EPERM for a group of zombies

    async def _finish_pump(self) -> None:
        # A grandchild outside the group may still hold the pipe: do not wait for it for ever.
        _, unfinished = await asyncio.wait([self._pump], timeout=PUMP_WAIT_SECONDS)
        for task in unfinished:
            task.cancel()
            await asyncio.wait([task], timeout=PUMP_WAIT_SECONDS)

    async def _pump_output(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        while line := await _read_line(stream):
            text = line.decode("utf-8", "backslashreplace").rstrip()
            self.tail.append(text)
            self._log.line(self.name, text)


async def _read_line(stream: asyncio.StreamReader) -> bytes:
    """Read a line or, of a line over the limit, the next piece; empty at the end."""
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as end:
        return end.partial
    except asyncio.LimitOverrunError as overrun:
        return await stream.read(max(overrun.consumed, 1))


def describe_exit(code: int) -> str:
    """Say how a process ended: `exit code 3` or `killed by SIGKILL`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
