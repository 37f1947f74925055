"""The schema as the migrations make it, written out for reviews: headrace_core/db/schema.sql.

`python -m headrace_core.stack.schema` writes it anew; a test holds it against the migrations.
"""

import asyncio
import sys
import tempfile
from pathlib import Path

import headrace_core.db
from headrace_core.db.migrate import migrate
from headrace_core.stack.binaries import postgres_folder
from headrace_core.stack.errors import StackError
from headrace_core.stack.logs import StackLog
from headrace_core.stack.postgres import Postgres

SCHEMA_FILE = Path(headrace_core.db.__file__).with_name("schema.sql")
DUMP_SECONDS = 30.0
# Comments, settings of pg_dump's session, and the tokens that newer versions of it wrap around a dump.
_NOISE = ("--", "SET ", "SELECT pg_catalog.", "\\restrict", "\\unrestrict")


async def dump(database_url: str) -> str:
    """The schemas `headrace` and `headrace_core` of a migrated database as SQL. Raises StackError."""
    program = str(postgres_folder() / "pg_dump")
    arguments = ["--schema-only", "--no-owner", "--no-privileges", "--schema=headrace", "--schema=headrace_core"]
    process = await asyncio.create_subprocess_exec(
        program, *arguments, database_url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(DUMP_SECONDS):
        output, errors = await process.communicate()
    if process.returncode:
        raise StackError(f"pg_dump failed: {errors.decode(errors='replace').strip()}")
    lines = [line for line in output.decode().splitlines() if line.strip() and not line.startswith(_NOISE)]
    return "\n".join(lines) + "\n"


async def _write() -> None:
    with tempfile.TemporaryDirectory() as folder:
        postgres = Postgres(Path(folder) / "postgres", StackLog(Path(folder) / "log"))
        await postgres.start()
        try:
            url = await postgres.create_database("schema")
            await migrate(url, after_deploy=True)
            SCHEMA_FILE.write_text(await dump(url), encoding="utf-8")
        finally:
            await postgres.stop()


if __name__ == "__main__":
    asyncio.run(_write())
    sys.stdout.write(f"{SCHEMA_FILE} is up to date\n")
