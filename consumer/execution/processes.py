"""Worker processes: started when needed, reused, killed when their unit is to end.

A unit is alone in its process, so a process that dies is that unit's crash and nobody else's (rule 8).
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from dataclasses import dataclass

from consumer.attempt import Attempt, ended_by, judge
from consumer.context import Reporting, Reports
from consumer.execution.wire import Frame, WireError, pack, read
from consumer.unit_facts import facts_of
from headrace_core.tasks.outcome import Crashed, Interrupted, Outcome, Planned, Raised, Succeeded
from headrace_core.telemetry import logs

START_SECONDS = 60.0
EXIT_SECONDS = 5.0
START_PAUSE_SECONDS = 1.0

log = logs.get(__name__)


class WorkerFailed(Exception):
    """A worker process did not come up."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """What a worker is started with."""

    modules: tuple[str, ...]
    log_level: str = "info"
    log_format: str = "json"


class Worker:
    """One worker process and the socket to it."""

    def __init__(
        self, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._process = process
        self._reader = reader
        self._writer = writer

    @classmethod
    async def start(cls, settings: WorkerSettings) -> Worker:
        """Start one and wait until it has imported its handlers.

        Raises:
            WorkerFailed: it could not be started, ended, or was not ready within a minute.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *_command(theirs.fileno(), settings),
                    pass_fds=(theirs.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                    env=_environment(),
                )
            reader, writer = await asyncio.open_connection(sock=ours)
        except BaseException as error:
            ours.close()  # the process, if there is one by now, ends by that
            if not isinstance(error, OSError):
                raise
            raise WorkerFailed(f"no worker process could be started: {error}") from error
        worker = cls(process, reader, writer)
        try:
            await worker._until_ready()
        except BaseException:
            await worker.kill()
            raise
        return worker

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    async def send(self, frame: Frame) -> None:
        """Send a frame; a worker that has gone is found by the next `receive`."""
        try:
            self._writer.write(pack(frame))
            await self._writer.drain()
        except (ConnectionError, RuntimeError):
            log.debug("a worker has gone", action="worker.gone", pid=self.pid)

    def tell_to_end(self) -> None:
        """Raise ctx.cancelled in its handler. Small, so that the socket's buffer takes it whatever the worker does."""
        if not self._writer.is_closing():
            self._writer.write(pack({"type": "cancel"}))

    async def receive(self) -> Frame | None:
        """The next frame; None once the process has gone. Raises WireError."""
        return await read(self._reader)

    async def kill(self) -> str:
        """End it at once and say how it ended. Idempotent."""
        try:
            self._process.kill()
        except ProcessLookupError:
            log.debug("a worker had ended already", action="worker.ended", pid=self.pid)
        return await self.exit()

    async def exit(self) -> str:
        """Wait for its end, by force after 5 s, and say how it ended."""
        self._writer.transport.abort()
        try:
            async with asyncio.timeout(EXIT_SECONDS):
                code = await self._process.wait()
        except TimeoutError:
            self._process.kill()
            code = await self._process.wait()
        return describe_exit(code)

    async def _until_ready(self) -> None:
        try:
            async with asyncio.timeout(START_SECONDS):
                frame = await self.receive()
        except TimeoutError as error:
            raise WorkerFailed(f"a worker process was not ready after {START_SECONDS:g} s") from error
        if frame is None or frame.get("type") != "ready":
            raise WorkerFailed(f"a worker process ended while starting: {await self.exit()}; see its standard error")


def describe_exit(code: int) -> str:
    """How a process ended, for an error message."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = "an unknown signal"
    return f"killed by {name} (signal {-code})"


def _command(descriptor: int, settings: WorkerSettings) -> list[str]:
    start = [str(descriptor), str(os.getpid()), settings.log_level, settings.log_format]
    return [sys.executable, "-m", "consumer.execution.worker", *start, *settings.modules]


def _environment() -> dict[str, str]:
    """A worker finds the same packages as we do, wherever `-m` and the working directory would look."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


class Processes:
    """A bounded set of worker processes. Belongs to one event loop."""

    def __init__(self, size: int, settings: WorkerSettings, reporting: Reporting) -> None:
        self._settings = settings
        self._reporting = reporting
        self._free = asyncio.Semaphore(size)
        self._idle: list[Worker] = []

    async def run(self, attempt: Attempt) -> Outcome | None:
        """Run one attempt in a process; None if it was ended and there is nothing to settle."""
        if not await attempt.turn(self._free):
            return ended_by(attempt)
        try:
            worker = await self._worker(attempt)
            return ended_by(attempt) if worker is None else await self._run_in(worker, attempt)
        except WorkerFailed as error:
            # Not the unit's fault. The pause keeps a broken installation from spinning through its interruptions.
            log.error("no worker process", action="worker.failed", error=str(error))
            await attempt.unless_ended(asyncio.ensure_future(asyncio.sleep(START_PAUSE_SECONDS)))
            return Interrupted(str(error))
        finally:
            self._free.release()

    async def close(self) -> None:
        """End the idle workers; those that run a unit end with it."""
        idle, self._idle = self._idle, []
        await asyncio.gather(*(worker.kill() for worker in idle))

    async def _worker(self, attempt: Attempt) -> Worker | None:
        """An idle worker or a new one; None if the attempt is to end before it is up."""
        if self._idle:
            return self._idle.pop()
        starting = asyncio.ensure_future(Worker.start(self._settings))
        return starting.result() if await attempt.unless_ended(starting) else None

    async def _run_in(self, worker: Worker, attempt: Attempt) -> Outcome | None:
        conversation = asyncio.create_task(self._converse(worker, attempt), name=f"worker-{worker.pid}")
        attempt.on_asked = worker.tell_to_end
        attempt.begin()
        try:
            # A process needs no grace: that it can be killed is what it is for.
            await attempt.until_over(conversation, conversation.cancel, attempt.handler.timeout)
        finally:
            attempt.on_asked = None
            if _is_clean(conversation):
                self._idle.append(worker)
            else:
                conversation.cancel()
                await worker.kill()
        return judge(attempt, conversation, _accept)

    async def _converse(self, worker: Worker, attempt: Attempt) -> Outcome:
        """Serve the worker's requests until its unit is over."""
        reports = Reports(attempt, self._reporting)
        await worker.send(_request(attempt))
        while True:
            try:
                frame = await worker.receive()
            except WireError as error:
                return Raised("WireError", str(error), retryable=False)
            if frame is None:
                return Crashed(_crash_text(await worker.exit(), attempt))
            outcome = _outcome_of(frame)
            if outcome is not None:
                return outcome
            await _serve(worker, reports, frame)


async def _serve(worker: Worker, reports: Reports, frame: Frame) -> None:
    if frame["type"] == "progress":
        reports.progress(float(frame["fraction"]), str(frame["message"]))
        return
    if frame["type"] == "output":
        await reports.output(str(frame["text"]))
    elif frame["type"] == "checkpoint":
        await reports.checkpoint(str(frame["data"]).encode())
    await worker.send({"type": "done"})


def _crash_text(ending: str, attempt: Attempt) -> str:
    """What is known about a crash: how the process ended, and how far the unit had come."""
    last = attempt.last_progress
    return f"{ending}; last progress {last}" if last else f"{ending}; it had reported no progress"


def _accept(outcome: Outcome) -> Outcome:
    return outcome


def _is_clean(conversation: asyncio.Task[Outcome]) -> bool:
    """Whether the worker has finished its unit and waits for the next."""
    if not conversation.done() or conversation.cancelled() or conversation.exception() is not None:
        return False
    outcome = conversation.result()
    return not isinstance(outcome, Crashed) and not (isinstance(outcome, Raised) and outcome.type == "WireError")


def _request(attempt: Attempt) -> Frame:
    unit = attempt.unit
    unit_number = unit.lease.unit_id.unit
    return {
        "type": "run",
        "facts": facts_of(unit),
        "kind": unit.kind,
        "unit_type": unit.type,
        "payload": unit.payload.decode(),
        "parts": [part.decode() for part in attempt.parts],
        "task": str(unit.lease.unit_id.task_id),
        "attempt": unit.attempt,
        "epoch": unit.lease.epoch,
        "deadline": unit.deadline.isoformat() if unit.deadline else None,
        "shard_index": unit_number if unit.type == "SHARD" else None,
        "checkpoint": unit.checkpoint.decode() if unit.checkpoint is not None else None,
        "trace": attempt.trace.text if attempt.trace is not None else None,
    }


def _outcome_of(frame: Frame) -> Outcome | None:
    match frame["type"]:
        case "succeeded":
            return Succeeded(frame["result"].encode())
        case "planned":
            return Planned(tuple(shard.encode() for shard in frame["shards"]), frame["needed"])
        case "raised":
            return Raised(frame["error"], frame["message"], frame["retryable"], frame["retry_after"])
        case _:
            return None
