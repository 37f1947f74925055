"""Numbered, forward-only migrations, each applied once, in one transaction, whoever comes first.

Safe to run from several processes at once: an advisory lock lets one through. Each file says in its first lines whether
it is meant before or after the deploy of the code that needs it.
"""

from importlib import resources

import psycopg

_LOCK = 0x48454144  # "HEAD": one number for this lock, held until the commit
_LEDGER = """
create schema if not exists headrace_core;
create table if not exists headrace_core.migrations (
    version text primary key, applied_at timestamptz not null default now()
);
"""


def available() -> dict[str, str]:
    """Version (`0001_initial`) to SQL, in order."""
    folder = resources.files("headrace_core.db").joinpath("migrations")
    files = sorted((item for item in folder.iterdir() if item.name.endswith(".sql")), key=lambda item: item.name)
    return {item.name.removesuffix(".sql"): item.read_text(encoding="utf-8") for item in files}


async def migrate(database_url: str) -> list[str]:
    """Apply what is missing; the versions applied, oldest first.

    Raises:
        psycopg.OperationalError: the database cannot be reached.
        RuntimeError: fsync is off: a commit would promise nothing (G1).
    """
    async with await psycopg.AsyncConnection.connect(database_url, connect_timeout=5) as connection:
        await connection.execute("select pg_advisory_xact_lock(%s)", (_LOCK,))
        await _refuse_without_fsync(connection)
        await connection.execute(_LEDGER)
        rows = await (await connection.execute("select version from headrace_core.migrations")).fetchall()
        missing = {version: sql for version, sql in available().items() if (version,) not in rows}
        for version, sql in missing.items():
            await connection.execute(sql.encode())
            await connection.execute("insert into headrace_core.migrations (version) values (%s)", (version,))
        return list(missing)


async def missing_versions(database_url: str) -> list[str]:
    """Versions that this code brings and the database lacks."""
    async with await psycopg.AsyncConnection.connect(database_url, connect_timeout=5) as connection:
        exists = await (await connection.execute("select to_regclass('headrace_core.migrations')::text")).fetchone()
        if exists is None or exists[0] is None:
            return list(available())
        rows = await (await connection.execute("select version from headrace_core.migrations")).fetchall()
        return [version for version in available() if (version,) not in rows]


async def _refuse_without_fsync(connection: psycopg.AsyncConnection[tuple[str, ...]]) -> None:
    row = await (await connection.execute("select current_setting('fsync')")).fetchone()
    if row is None or row[0] != "on":
        raise RuntimeError(
            "Postgres runs with fsync = off; an accepted task could be lost. Switch it on and restart Postgres."
        )
