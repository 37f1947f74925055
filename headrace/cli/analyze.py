"""`headrace analyze`: a document in, its summary and the answers with their passages out."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from contextlib import aclosing
from typing import Annotated, Any

import typer

from headrace.cli import output
from headrace.cli.arguments import read_text
from headrace.cli.bar import TaskBar
from headrace.cli.session import Session, verb
from headrace.cli.tasks import require_completed, write_result

KIND = "ai.analyze"


def register(app: typer.Typer) -> None:
    """Add the verb to `app`."""
    verb(app, "analyze")(analyze)


async def analyze(
    session: Session,
    file: Annotated[str, typer.Argument(metavar="FILE", help="A UTF-8 text; - is standard input.")],
    question: Annotated[list[str] | None, typer.Option("--question", metavar="TEXT", help="May be repeated.")] = None,
    instructions: Annotated[
        str | None, typer.Option("--instructions", metavar="TEXT", help="Wishes for tone, focus or language.")
    ] = None,
) -> None:
    """Analyse a document: summary, key points, and an answer with its passages for each question."""
    payload: dict[str, Any] = {"document": read_text(file, "FILE"), "questions": question or []}
    if instructions is not None:
        payload["instructions"] = instructions
    task = await session.client.submit(KIND, payload)
    with _told_how_to_go_on(task.id):
        await _show_progress(session, task.id)
        ended = await session.client.wait(task.id)
    if session.json:
        write_result(session, ended)
        return
    require_completed(ended)
    for line in result_lines(json.loads(ended.result_json)):
        output.write_line(line)


def result_lines(result: dict[str, Any]) -> Iterator[str]:
    """Yield the result of ai.analyze for people. Members that are missing are left out."""
    yield "Summary"
    yield f"  {result.get('summary') or '(none)'}"
    if points := result.get("key_points"):
        yield ""
        yield "Key points"
        yield from (f"  - {point}" for point in points)
    for answer in result.get("answers") or ():
        yield ""
        yield f"Question: {answer.get('question', '')}"
        yield f"  {answer.get('answer') or 'No answer in the document; the nearest passages:'}"
        yield from (_passage_line(passage) for passage in answer.get("passages") or ())
    if backend := result.get("backend"):
        yield ""
        details = ", ".join(str(result[name]) for name in ("model", "scoring") if result.get(name))
        yield f"({backend}: {details})"


def _passage_line(passage: dict[str, Any]) -> str:
    place = f"{passage.get('start', '?')}-{passage.get('end', '?')}"
    score = passage.get("score")
    strength = f", {score:.2f}" if isinstance(score, int | float) else ""
    return f"    [{place}{strength}] {' '.join(str(passage.get('text', '')).split())}"


async def _show_progress(session: Session, id: str) -> None:
    if session.json or not sys.stderr.isatty():
        return
    with TaskBar("analysing") as bar:
        async with aclosing(session.client.watch(id)) as events:
            async for event in events:
                bar.show(event)


@contextlib.contextmanager
def _told_how_to_go_on(id: str) -> Iterator[None]:
    """Say how to come back to the task if the user leaves before its end."""
    try:
        yield
    except BaseException:
        output.note(f"headrace: the task goes on; see it with: headrace watch {id}")
        raise
