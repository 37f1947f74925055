"""The local stack in the hands of tests: `headrace.testing.Stack`, found by entry point."""

import contextlib
import dataclasses
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from headrace.testing.stack import Stack
from headrace_core.bus.topology import StreamNames
from headrace_core.stack.ack_wire import AckWire
from headrace_core.stack.dev import LocalStack, StackOptions
from headrace_core.stack.knobs import BROKER, DATABASE, Knobs
from headrace_core.stack.loop_thread import LoopThread
from headrace_core.stack.preparing import check_settings
from headrace_core.stack.services import inherited_environment

T = TypeVar("T")


@contextlib.contextmanager
def start(
    folder: Path,
    *,
    handlers: Sequence[str] = (),
    consumers: int = 2,
    environment: Mapping[str, str] | None = None,
    working_folder: Path | None = None,
) -> Iterator["SteeredStack"]:
    """Start a stack whose data live in `folder`, and stop it at the end.

    `handlers` are importable modules besides the built-in kinds, `environment` is added to the inherited one for every
    service, `working_folder` (default: the current one) is where headrace.toml is looked for.

    Raises:
        StackError, SettingsError: it cannot start; the message says why.
    """
    options = StackOptions(
        folder,
        consumers=consumers,
        handlers=handlers,
        environment=environment or {},
        working_folder=working_folder or Path.cwd(),
    )
    running = SteeredStack(options)
    try:
        yield running
    finally:
        running.close()


class SteeredStack(Stack):
    """A local stack on a thread of its own; what its knobs do is in `headrace.testing.Stack`."""

    def __init__(self, options: StackOptions) -> None:
        self._loop = LoopThread("headrace-stack")
        try:
            self.stack, self._wire, self._knobs = self._loop.run(_started(options))
        except BaseException:
            self._loop.close()
            raise

    @property
    def producer(self) -> str:
        """See Stack.producer."""
        return self.stack.endpoints.producer

    @property
    def status(self) -> str:
        """See Stack.status."""
        return self.stack.endpoints.status

    @property
    def http(self) -> str:
        """See Stack.http."""
        return self.stack.endpoints.http

    @property
    def database_url(self) -> str:
        """See Stack.database_url."""
        return self.stack.endpoints.database_url

    @property
    def nats_url(self) -> str:
        """See Stack.nats_url."""
        return self.stack.endpoints.nats_url

    @property
    def log_file(self) -> Path:
        """See Stack.log_file."""
        return self.stack.log_file

    @property
    def consumers(self) -> list[str]:
        """See Stack.consumers."""
        return self._knobs.consumers

    @property
    def lost_acknowledgements(self) -> int:
        """How many acknowledgements `crash_after_settle` has kept from the broker so far."""
        return self._wire.lost

    def run(self, knob: Coroutine[Any, Any, T]) -> T:
        """See Stack.run."""
        return self._loop.run(knob)

    def close(self) -> None:
        """Stop everything and end the thread."""
        try:
            self._loop.run(self._stop())
        finally:
            self._loop.close()

    async def lose_broker(self, *, with_data: bool = False) -> None:
        """See Stack.lose_broker."""
        await self._loop.call(self._knobs.wipe_broker() if with_data else self._knobs.kill(BROKER))

    async def freeze_broker(self) -> None:
        """See Stack.freeze_broker."""
        await self._loop.call(self._knobs.freeze(BROKER))

    async def restore_broker(self) -> None:
        """See Stack.restore_broker."""
        await self._loop.call(self._knobs.restore(BROKER))

    async def lose_database(self) -> None:
        """See Stack.lose_database."""
        await self._loop.call(self._knobs.kill(DATABASE))

    async def freeze_database(self) -> None:
        """See Stack.freeze_database."""
        await self._loop.call(self._knobs.freeze(DATABASE))

    async def restore_database(self) -> None:
        """See Stack.restore_database."""
        await self._loop.call(self._knobs.restore(DATABASE))

    async def kill_consumer(self, running: str | None = None) -> str:
        """See Stack.kill_consumer."""
        return await self._loop.call(self._knobs.with_consumer(running, self._knobs.kill))

    async def stop_consumer(self, running: str | None = None) -> str:
        """See Stack.stop_consumer."""
        return await self._loop.call(self._knobs.with_consumer(running, self._knobs.stop))

    async def freeze_consumer(self, running: str | None = None) -> str:
        """See Stack.freeze_consumer."""
        return await self._loop.call(self._knobs.with_consumer(running, self._knobs.freeze))

    async def start_consumer(self, name: str) -> None:
        """See Stack.start_consumer."""
        await self._loop.call(self._knobs.restore(name))

    async def deliver_again(self, task_id: str) -> None:
        """See Stack.deliver_again."""
        await self._loop.call(self._knobs.deliver_again(task_id))

    @contextlib.asynccontextmanager
    async def crash_after_settle(self) -> AsyncIterator[None]:
        """See Stack.crash_after_settle."""
        losing = self._knobs.losing_acknowledgements()
        await self._loop.call(losing.__aenter__())
        try:
            yield
        finally:
            await self._loop.call(losing.__aexit__(None, None, None))

    async def until_acknowledged(self, *, within: float = 30.0) -> None:
        """See Stack.until_acknowledged."""
        await self._loop.call(self._knobs.until_acknowledged(), within=within)

    async def heal(self) -> None:
        """See Stack.heal."""
        await self._loop.call(self._knobs.heal())

    async def _stop(self) -> None:
        await self._knobs.thaw()
        await self.stack.__aexit__(None, None, None)
        await self._wire.stop()


async def _started(options: StackOptions) -> tuple[LocalStack, AckWire, Knobs]:
    """A running stack whose consumers reach the broker through the wire, which listens before there is a broker."""
    settings = check_settings(
        inherited_environment(options.working_folder) | dict(options.environment), options.working_folder
    )
    wire = AckWire(lambda: stack.nats.port)
    await wire.start()
    wired = {f"consumer-{number}": {"HEADRACE_NATS_URL": wire.url} for number in range(1, options.consumers + 1)}
    stack = LocalStack(options.data_dir, options=dataclasses.replace(options, service_environment=wired))
    try:
        await stack.__aenter__()
    except BaseException:
        await wire.stop()
        raise
    return stack, wire, Knobs(stack, wire, StreamNames(settings.stream_prefix, settings.subject_prefix))
