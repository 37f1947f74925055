"""Numbered, forward-only migrations, each applied once, in one transaction, whoever comes first.

Safe to run from several processes at once: an advisory lock lets one through. Each file says in its first lines whether
it is meant before or after the deploy of the code that needs it. One for afterwards takes away what the release before
still uses, so it is applied only when that is asked for, and nobody waits for it.

Services go on meanwhile. A statement that waits for a table holds up everybody who comes to that table after it, for as
long as some long transaction before it lasts. So a migration waits for a lock in short tries, and gives way in between.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib import resources

import psycopg
from psycopg import errors as sqlstate
from psycopg.conninfo import conninfo_to_dict, make_conninfo

_LOCK = 0x48454144  # "HEAD": one number for this lock, held until the commit
_LEDGER = """
create schema if not exists headrace_core;
create table if not exists headrace_core.migrations (
    version text primary key, applied_at timestamptz not null default now()
);
"""
# Roles and grants: what the schema's own function makes of the roles that there are by now.
_HAS_GRANTS = """
select to_regprocedure('headrace_core.grant_services()') is not null and pg_has_role(n.nspowner, 'USAGE')
from pg_namespace n where n.nspname = 'headrace_core'
"""
_GRANT = "select headrace_core.grant_services()"
# The one notice that is meant for the operator; others say that what is there is there.
_MEANT_FOR_THE_OPERATOR = "01HR1"
# One try. Below the services' limit of 5 s for a statement; above the second after which Postgres ends an autovacuum
# that is in the way.
LOCK_SECONDS = 2.0
# Between two tries, for whoever waited behind the last one.
GIVE_WAY_SECONDS = 3.0
PATIENCE_SECONDS = 120.0
# A look at the ledger.
LOOK_SECONDS = 5.0
# A host that is gone is noticed; without these a connection to it waits for two hours.
_KEEPALIVE = {"keepalives_idle": 10, "keepalives_interval": 3, "keepalives_count": 3, "tcp_user_timeout": 15_000}

_Connection = psycopg.AsyncConnection[tuple[str, ...]]
_OLDEST = """
select format('process %s (%s, %s) has a transaction open since %s', pid, usename,
    coalesce(nullif(application_name, ''), 'no name'), date_trunc('second', xact_start))
from pg_stat_activity
where datname = current_database() and pid <> pg_backend_pid() and xact_start is not null and usename is not null
order by xact_start limit 1
"""


def available() -> dict[str, str]:
    """Version (`0001_initial`) to SQL, in order."""
    folder = resources.files("headrace_core.db").joinpath("migrations")
    files = sorted((item for item in folder.iterdir() if item.name.endswith(".sql")), key=lambda item: item.name)
    return {item.name.removesuffix(".sql"): item.read_text(encoding="utf-8") for item in files}


def needed() -> list[str]:
    """The versions that this code needs, in order: without those that are for afterwards."""
    return list(_wanted(after_deploy=False))


def is_for_afterwards(sql: str) -> bool:
    """Whether a migration is labelled "after deploy", in one of its first five lines."""
    head = "".join(line for line in sql.splitlines()[:5] if line.startswith("--"))
    return "Label: after deploy" in head


async def migrate(
    database_url: str,
    *,
    after_deploy: bool = False,
    patience: float = PATIENCE_SECONDS,
    note: Callable[[str], None] = lambda _text: None,
) -> list[str]:
    """Apply what is missing; the versions applied, oldest first. `after_deploy`: also what is labelled so.

    A lock that is not free is tried for `patience` seconds; `note` is told once that it is waited for, and which roles
    are missing where the URL's own role may not create them.

    Raises:
        psycopg.OperationalError: the database cannot be reached.
        RuntimeError: the URL cannot be read; fsync is off: a commit would promise nothing (G1); a lock did not
            become free in time.
    """
    clock = asyncio.get_running_loop().time
    end = clock() + patience
    noted = False
    while True:
        try:
            return await _attempt(database_url, end - clock(), note, after_deploy)
        except (sqlstate.LockNotAvailable, sqlstate.DeadlockDetected) as error:
            holder = await _oldest_transaction(database_url)
            if clock() + GIVE_WAY_SECONDS >= end:
                raise RuntimeError(
                    f"a lock that the migrations need did not become free within {patience:g} s, and nothing was "
                    f"changed; {holder}: let it end and run headrace db migrate again"
                ) from error
        if not noted:
            note(f"waiting for up to {patience:g} s for a lock; {holder}")
            noted = True
        await asyncio.sleep(GIVE_WAY_SECONDS)


async def missing_versions(database_url: str, *, after_deploy: bool = False) -> list[str]:
    """Versions that this code needs and the database lacks; `after_deploy`: also those that may wait.

    Raises as `migrate`; TimeoutError: no answer in 5 s.
    """
    async with asyncio.timeout(LOOK_SECONDS), _connected(database_url) as connection:
        exists = await (await connection.execute("select to_regclass('headrace_core.migrations')::text")).fetchone()
        if exists is None or exists[0] is None:
            return list(_wanted(after_deploy))
        return list(await _missing(connection, after_deploy))


async def _attempt(database_url: str, patience: float, note: Callable[[str], None], after_deploy: bool) -> list[str]:
    notes: dict[str, None] = {}  # the function that grants may run twice
    async with _connected(database_url) as connection:
        connection.add_notice_handler(lambda notice: _keep(notice, notes))
        # Nobody waits behind this lock but other migrations: it may be waited for in one piece.
        await _limit_lock_waits(connection, max(patience, 0.001))
        await connection.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))
        await _limit_lock_waits(connection, LOCK_SECONDS)
        await _refuse_without_fsync(connection)
        await connection.execute(_LEDGER)
        missing = await _missing(connection, after_deploy)
        for version, sql in missing.items():
            await connection.execute(sql.encode())
            await connection.execute("insert into headrace_core.migrations (version) values (%s)", (version,))
        await _grant(connection)
    for text in notes:
        note(text)
    return list(missing)


async def _grant(connection: _Connection) -> None:
    """Grant again, for roles that were made since. Only for the schema's owner: others may not, and need not."""
    found = await (await connection.execute(_HAS_GRANTS)).fetchone()
    if found is not None and found[0]:
        await connection.execute(_GRANT)


def _keep(notice: psycopg.errors.Diagnostic, notes: dict[str, None]) -> None:
    if notice.sqlstate == _MEANT_FOR_THE_OPERATOR and notice.message_primary:
        notes[notice.message_primary] = None


@asynccontextmanager
async def _connected(database_url: str) -> AsyncIterator[_Connection]:
    """A connection in one transaction, committed at the end."""
    connection = await psycopg.AsyncConnection.connect(_conninfo(database_url), connect_timeout=5)
    async with connection:
        yield connection


def _conninfo(database_url: str) -> str:
    """What libpq is told. Raises RuntimeError, without what a library says of a wrong URL: it quotes the password."""
    conninfo = _parsed(database_url)
    if conninfo is None:
        raise RuntimeError(
            "the database's URL cannot be read; it is postgresql://user:password@host:5432/database, and signs such as "
            "@ : / ? % in the user or the password are written as %40 %3A %2F %3F %25"
        )
    return conninfo


def _parsed(database_url: str) -> str | None:
    """None too where a piece of the password would be taken for the host or the port, and quoted as such."""
    try:
        conninfo = make_conninfo(database_url, **_KEEPALIVE)
    except psycopg.ProgrammingError:
        return None
    found = {name: str(value or "") for name, value in conninfo_to_dict(conninfo).items()}
    has_port = not set(found.get("port", "")) - set("0123456789,")
    # A password that was not encoded may end at its first sign, and the rest is taken for what follows.
    is_sound = has_port and "@" not in found.get("host", "") + found.get("dbname", "")
    return conninfo if is_sound else None


def _wanted(after_deploy: bool) -> dict[str, str]:
    return {version: sql for version, sql in available().items() if after_deploy or not is_for_afterwards(sql)}


async def _missing(connection: _Connection, after_deploy: bool) -> dict[str, str]:
    rows = await (await connection.execute("select version from headrace_core.migrations")).fetchall()
    return {version: sql for version, sql in _wanted(after_deploy).items() if (version,) not in rows}


async def _limit_lock_waits(connection: _Connection, seconds: float) -> None:
    milliseconds = str(max(int(seconds * 1000), 1))  # 0 would be no limit
    await connection.execute("select set_config('lock_timeout', %s, true)", (milliseconds,))


async def _oldest_transaction(database_url: str) -> str:
    """Who is probably in the way: a sentence without its full stop."""
    async with _connected(database_url) as connection:
        row = await (await connection.execute(_OLDEST)).fetchone()
    return "nobody has a transaction open any more" if row is None else row[0]


async def _refuse_without_fsync(connection: _Connection) -> None:
    row = await (await connection.execute("select current_setting('fsync')")).fetchone()
    if row is None or row[0] != "on":
        raise RuntimeError(
            "Postgres runs with fsync = off; an accepted task could be lost. Switch it on and restart Postgres."
        )
