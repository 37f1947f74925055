"""How a test breaks a local stack and puts it right. Everything here runs on the stack's own event loop."""

import asyncio
import contextlib
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from uuid import UUID

from headrace_core.bus.connection import Bus
from headrace_core.bus.publisher import OutgoingMessage, Publisher
from headrace_core.bus.topology import StreamNames, list_topology
from headrace_core.db import queries
from headrace_core.db.pool import Database, Row
from headrace_core.stack.ack_wire import AckWire
from headrace_core.stack.dev import LocalStack
from headrace_core.stack.errors import StackError
from headrace_core.tasks.model import Publication, UnitId

POLL_SECONDS = 0.2
CONNECT_SECONDS = 5.0
BROKER = "nats"
DATABASE = "postgres"

_SQL = queries.load("headrace_core.stack", "sql/knobs.sql")


class Knobs:
    """The knobs of one stack; each method is described in `headrace.testing.Stack`."""

    def __init__(self, stack: LocalStack, wire: AckWire, names: StreamNames) -> None:
        self._stack = stack
        self._wire = wire
        self._names = names
        self._away: set[str] = set()
        self._frozen: set[str] = set()

    @property
    def consumers(self) -> list[str]:
        """The names of the consumers."""
        return sorted(name for name in self._stack.services if name.startswith("consumer"))

    async def kill(self, name: str) -> None:
        """Kill a part and keep it away until `restore`."""
        self._away.add(name)
        self._frozen.discard(name)
        await self._stack.kill_part(name)

    async def wipe_broker(self) -> None:
        """Kill the nats-server and delete its streams."""
        await self.kill(BROKER)
        await asyncio.to_thread(shutil.rmtree, self._stack.data_dir / "nats", ignore_errors=True)

    async def stop(self, name: str) -> None:
        """Stop a part cleanly and keep it away until `restore`."""
        self._thaw(name)
        self._away.add(name)
        await self._stack.stop_part(name)

    async def freeze(self, name: str) -> None:
        """Stop a part in its tracks until `restore`."""
        if name in self._away:
            raise LookupError(f"{name} does not run")
        self._frozen.add(name)
        self._signal(name, signal.SIGSTOP)

    async def restore(self, name: str) -> None:
        """Start a part that is away, let a frozen one go on."""
        self._thaw(name)
        if name in self._away:
            await self._stack.start_part(name)
            self._away.discard(name)

    async def thaw(self) -> None:
        """Let everything that is frozen go on."""
        for name in list(self._frozen):
            self._thaw(name)

    async def heal(self) -> None:
        """Put everything right: what is frozen first, then the servers, then the services, which wait for them."""
        await self.thaw()
        self._wire.losing = False
        for name in (DATABASE, BROKER):
            await self.restore(name)
        await asyncio.gather(*(self.restore(name) for name in list(self._away)))

    async def with_consumer(self, running: str | None, turn: Callable[[str], Awaitable[None]]) -> str:
        """Do `turn` to the consumer that is meant, and return its name."""
        name = await self._meant(running)
        await turn(name)
        return name

    async def deliver_again(self, task_id: str) -> None:
        """Publish each unit's last message again, without an id: no duplicate window takes it out."""
        rows = await self._fetch("publications_of", task_id)
        if not rows:
            raise LookupError(f"there is no task {task_id}")
        bus = Bus(self._stack.nats.url, name="headrace-testing")
        try:
            if not await bus.connect(CONNECT_SECONDS):
                raise StackError(f"cannot publish: {bus.problem}")
            await self._publish(bus, [_publication(row) for row in rows])
        finally:
            await bus.close()

    @contextlib.asynccontextmanager
    async def losing_acknowledgements(self) -> AsyncIterator[None]:
        """Lose acknowledgements inside, then kill every consumer that had some to send, which is any of them."""
        self._wire.losing = True
        try:
            yield
        finally:
            await asyncio.gather(*(self.kill(name) for name in self.consumers))
            self._wire.losing = False
            await asyncio.gather(*(self.restore(name) for name in self.consumers))

    async def until_acknowledged(self) -> None:
        """Wait until the stream of tasks is empty; the caller bounds it."""
        while await self._messages():  # noqa: ASYNC110 - the broker tells nobody
            await asyncio.sleep(POLL_SECONDS)

    async def _messages(self) -> int:
        rows = await list_topology(self._stack.nats.url, self._names)
        return max((row.messages for row in rows if row.stream == self._names.tasks), default=0)

    async def _publish(self, bus: Bus, publications: list[Publication]) -> None:
        publisher = Publisher(bus)
        messages = [OutgoingMessage(self._names.task_subject(item.subject_suffix), item.body) for item in publications]
        try:
            results = await publisher.publish(messages)
        finally:
            await publisher.close()
        for result in results:
            if not result.accepted:
                raise StackError(f"the stream did not take the message: {result.outcome} {result.reason}")

    async def _meant(self, running: str | None) -> str:
        if running is None:
            return self.consumers[0]
        if running in self.consumers:
            return running
        workers = {row["worker"] for row in await self._fetch("workers_of", running)}
        processes = {worker.rpartition("/")[2] for worker in workers}
        for name in self.consumers:
            if str(self._stack.services[name].pid) in processes:
                return name
        raise LookupError(f"no consumer runs the task {running}; the consumers are {', '.join(self.consumers)}")

    async def _fetch(self, statement: str, task_id: str) -> list[Row]:
        try:
            task = UUID(task_id)
        except ValueError:
            raise LookupError(f"{task_id!r} is neither a task's id nor a consumer's name") from None
        database = Database(self._stack.endpoints.database_url, max_size=1)
        await database.open()
        try:
            return await database.fetch(_SQL[statement], {"task": task})
        finally:
            await database.close()

    def _thaw(self, name: str) -> None:
        if name in self._frozen:
            self._frozen.discard(name)
            self._signal(name, signal.SIGCONT)

    def _signal(self, name: str, number: signal.Signals) -> None:
        """A server of several processes knows how to freeze all of them; workers of a consumer only wait for it."""
        for server in (self._stack.nats, self._stack.postgres):
            if server.name == name:
                return server.pause() if number is signal.SIGSTOP else server.resume()
        return self._stack.services[name].send(number)


def _publication(row: Row) -> Publication:
    unit = UnitId(row["task_id"], row["unit"])
    return Publication(unit, row["queue"], row["priority"], row["resumed"], row["dispatch"])
