"""A puller whose messages a test can wait for."""

import asyncio

from headrace_core.bus.connection import Bus
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.puller import Message, Puller

NAMES = StreamNames()


class Collector:
    """A puller that always has some messages asked for and keeps what comes."""

    def __init__(self, bus: Bus, *, batch: int = 100, stream: str = NAMES.tasks, **options: float) -> None:
        self.messages: list[Message] = []
        self.idle = 0
        self.batch = batch
        self.puller = Puller(bus, stream, "default-normal", self.take, on_idle=self.on_idle, **options)
        self._tasks: set[asyncio.Task[bool]] = set()

    def take(self, message: Message) -> None:
        self.messages.append(message)
        if self.puller.outstanding == 0:
            self.ask()

    def on_idle(self) -> None:
        self.idle += 1
        if self.puller.outstanding == 0:
            self.ask()

    def ask(self) -> None:
        task = asyncio.get_running_loop().create_task(self.puller.request(self.batch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def bodies(self) -> set[bytes]:
        return {message.body for message in self.messages}
