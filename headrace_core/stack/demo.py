"""`make demo`: a real document through the whole of Headrace, on this machine, in seconds.

FILE names the document (by default Headrace's own documentation), QUESTIONS holds questions, each ending with a
question mark. Everything shown is shown by the product itself: the command line, and SQL on the public views.
"""

import asyncio
import os
import re
import sys
import sysconfig
from pathlib import Path
from typing import TextIO

import psycopg

from headrace_core.settings.errors import SettingsError
from headrace_core.stack.child import describe_exit
from headrace_core.stack.dev import Endpoints, LocalStack
from headrace_core.stack.errors import StackError
from headrace_core.stack.serving import StopOnSignal
from headrace_core.telemetry import logs

ROOT = Path(__file__).resolve().parents[2]
DATA_DIR = Path(".headrace") / "demo"
ANALYSIS_SECONDS = 100.0
QUESTIONS = ("When is a task accepted?", "What happens when the broker is down?", "What is a lease?")
RECORD = """
select id::text, state, attempts, done_shards, total_shards,
       round(extract(epoch from ended_at - created_at)::numeric, 2) as seconds,
       octet_length(result::text) as result_bytes, result->>'summary' as summary
from headrace.tasks where kind = 'ai.analyze' order by created_at desc limit 1
"""
SHARDS = """
select shard_index, state, worker, round(extract(epoch from ended_at - started_at)::numeric, 2) as seconds
from headrace.shards where task_id = %s order by shard_index
"""


async def demonstrate(document: Path | None, questions: list[str], out: TextIO) -> None:
    """Start a stack, analyse `document`, show the result twice, stop. Raises StackError."""
    say(out, "Starting Postgres, NATS, producer, status and two consumers on this machine …")
    async with LocalStack(DATA_DIR) as stack:
        say(out, f"They serve. The log of all of them: {stack.log_file}")
        document = document or own_documents(stack.data_dir)
        await analyze(document, questions, stack.endpoints, out)
        await show_record(stack.endpoints.database_url, out)
        say(out, "Stopping …")
    say(out, "Stopped. Run the same stack for yourself with: .venv/bin/headrace dev")


async def analyze(document: Path, questions: list[str], endpoints: Endpoints, out: TextIO) -> None:
    """Run `headrace analyze`, its output being ours. Raises StackError when it fails or takes too long."""
    arguments = ["analyze", str(document)]
    for question in questions:
        arguments += ["--question", question]
    say(out, f"$ headrace {' '.join(quoted(argument) for argument in arguments)}")
    addresses = {
        "HEADRACE_PRODUCER_ADDRESS": endpoints.producer,
        "HEADRACE_STATUS_ADDRESS": endpoints.status,
    }
    program = Path(sysconfig.get_path("scripts")) / "headrace"
    process = await asyncio.create_subprocess_exec(program, *arguments, env={**os.environ, **addresses})
    try:
        async with asyncio.timeout(ANALYSIS_SECONDS):
            code = await process.wait()
    except TimeoutError:
        raise StackError(f"the analysis took over {ANALYSIS_SECONDS:.0f} s") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code != 0:
        raise StackError(f"headrace analyze failed ({describe_exit(code)})")


async def show_record(database_url: str, out: TextIO) -> None:
    """Show the task and its shards as anybody reads them by SQL. Raises StackError when there is no result."""
    say(out, "The same, read by SQL: select … from headrace.tasks")
    async with await psycopg.AsyncConnection.connect(database_url, connect_timeout=5) as connection:
        cursor = await connection.execute(RECORD)
        rows = await cursor.fetchall()
        if not rows:
            raise StackError("headrace.tasks holds no ai.analyze task")
        write_row(out, [column.name for column in cursor.description or ()], rows[0])
        shards = await (await connection.execute(SHARDS, (rows[0][0],))).fetchall()
    say(out, "… and its shards: select … from headrace.shards")
    for index, state, worker, seconds in shards:
        out.write(f"  shard {index:>2}  {state:<10} {seconds or '–'!s:>6} s  {worker or ''}\n")
    out.flush()


def write_row(out: TextIO, names: list[str], values: tuple[object, ...]) -> None:
    """Write one row of a result as lines `name  value`."""
    for name, value in zip(names, values, strict=True):
        text = str(value)
        out.write(f"  {name:<13}{text if len(text) < 200 else text[:200] + ' …'}\n")


def own_documents(folder: Path) -> Path:
    """Return a document made of Headrace's README and documentation, for want of another."""
    sources = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    texts = [source.read_text(encoding="utf-8") for source in sources if source.is_file()]
    if not texts:
        raise StackError(f"there is no documentation in {ROOT}; name a document: make demo FILE=…")
    document = folder / "document.md"
    document.write_text("\n\n".join(texts), encoding="utf-8")
    return document


def split_questions(text: str) -> list[str]:
    """Return the questions of a text, each with its question mark; a rest without one is a question too."""
    return [question.strip() for question in re.findall(r"[^?？]+[?？]?", text) if question.strip()]


def quoted(argument: str) -> str:
    """Return an argument as a person would type it."""
    return f'"{argument}"' if " " in argument else argument


def say(out: TextIO, text: str) -> None:
    """Write a line of the demonstration, set apart from what the product writes."""
    out.write(f"\n── {text}\n")
    out.flush()


async def run(document: Path | None, questions: list[str], out: TextIO) -> bool:
    """Demonstrate until the end or a signal; return whether it came to the end."""
    stop = StopOnSignal()
    stop.install()
    try:
        await demonstrate(document, questions, out)
    except asyncio.CancelledError:
        if not stop.asked:
            raise
        return False
    return True


def main() -> int:
    """Read FILE and QUESTIONS from the environment and demonstrate; return the exit code."""
    logs.configure("warning", "console", "demo")
    name = os.environ.get("FILE", "")
    document = Path(name) if name else None
    if document is not None and not document.is_file():
        sys.stderr.write(f"demo: there is no file {document}\n")
        return 2
    questions = split_questions(os.environ.get("QUESTIONS", "")) or list(QUESTIONS)
    try:
        return 0 if asyncio.run(run(document, questions, sys.stdout)) else 1
    except (StackError, SettingsError) as error:
        sys.stderr.write(f"demo: {error.message}\n")
        return 1


if __name__ == "__main__":
    sys.exit(main())
