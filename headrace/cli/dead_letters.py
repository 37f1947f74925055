"""`headrace dlq`: what failed for good, and giving it another go or closing it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli import describe, output
from headrace.cli.arguments import json_object, moment
from headrace.cli.confirm import confirmed
from headrace.cli.exits import usage_failure
from headrace.cli.session import Session, verb

if TYPE_CHECKING:
    from headrace.v1 import dead_letter_pb2

app = typer.Typer(help="Dead letters: list, show, redrive, discard.", rich_markup_mode=None)
# What the server takes in one call.
MATCHES_PER_CALL = 10_000
READS_AT_ONCE = 16
Id = Annotated[str, typer.Argument(metavar="ID", help="A dead letter's id, or a task's.")]
Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Dead letters' ids, or tasks'.")]
QueueOption = Annotated[str, typer.Option("--queue", metavar="NAME", help="Only of this queue.")]
KindOption = Annotated[str, typer.Option("--kind", metavar="KIND", help="Only of this kind.")]
ReasonOption = Annotated[
    str, typer.Option("--reason", metavar="REASON", help="Only for this reason, such as ATTEMPTS_EXHAUSTED.")
]
AllOption = Annotated[bool, typer.Option("--all", help="Every open one.")]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Count and change nothing.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@dataclass(frozen=True, slots=True)
class Choice:
    """Which dead letters: ids or a filter, never both."""

    ids: tuple[str, ...]
    filter: dead_letter_pb2.DeadLetterFilter | None

    @property
    def words(self) -> str:
        """What is chosen, for people."""
        if self.filter is None:
            return f"{len(self.ids)} dead letter" + ("s" if len(self.ids) != 1 else "")
        fields = [f"{field.name} {value}" for field, value in self.filter.ListFields() if field.name != "reason"]
        if self.filter.reason:
            fields.append("the given reason")
        return "all open dead letters" + (f" of {', '.join(fields)}" if fields else "")


@app.callback(invoke_without_command=True)
def _dead_letters(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        output.write_line(ctx.get_help())


async def list_letters(
    session: Session,
    queue: QueueOption = "",
    kind: KindOption = "",
    reason: ReasonOption = "",
    resolved: Annotated[bool, typer.Option("--resolved", help="Also redriven and discarded ones.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=0, help="At most so many; 0: all.")] = 100,
) -> None:
    """List dead letters, newest first, of every namespace unless --namespace names one."""
    rows: list[tuple[str, ...]] = []
    count = 0
    letters = session.client.dead_letters.list(_filter(session, queue, kind, reason, resolved=resolved))
    async for letter in letters:
        count += 1
        if limit and count > limit:
            output.note(f"headrace: there are more than {limit} dead letters; --limit 0 lists all")
            break
        if session.json:
            output.write_message(letter)
        else:
            rows.append(describe.dead_letter_row(letter))
    await letters.aclose()
    if not session.json:
        output.write_table(describe.DEAD_LETTER_COLUMNS, rows)


async def show(session: Session, id: Id) -> None:
    """Show one with its attempts and payload."""
    letter = await session.client.dead_letters.get(id)
    if session.json:
        output.write_message(letter)
        return
    output.write_fields(describe.dead_letter_fields(letter))
    for attempt in letter.attempts:
        output.write_line(f"  {describe.attempt_text(attempt)}")


async def redrive(
    session: Session,
    ids: Ids = None,
    queue: QueueOption = "",
    kind: KindOption = "",
    reason: ReasonOption = "",
    everything: AllOption = False,
    rate: Annotated[float, typer.Option("--rate", min=0.0, help="Tasks per second; 0: all at once.")] = 0.0,
    dry_run: DryRunOption = False,
    payload: Annotated[
        str | None, typer.Option("--payload", metavar="JSON|@FILE|-", help="A new payload; with one ID only.")
    ] = None,
    deadline: Annotated[
        str | None, typer.Option("--deadline", metavar="TIME|DURATION", help="A new deadline for all of them.")
    ] = None,
) -> None:
    """Give failed tasks another go, with fresh budgets; finished shards stay finished."""
    choice = _choice(session, ids, queue, kind, reason, everything)
    content = None if payload is None else json_object(payload)
    new_deadline = None if deadline is None else moment(deadline, "--deadline")
    matched = redriven = skipped = 0
    while True:
        response = await session.client.dead_letters.redrive(
            choice.ids, filter=choice.filter, rate=rate, dry_run=dry_run, payload=content, deadline=new_deadline
        )
        matched, redriven, skipped = (
            matched + response.matched,
            redriven + response.redriven,
            skipped + response.skipped,
        )
        _write_tasks(session, response)
        if choice.filter is None or rate or response.redriven == 0 or response.matched < MATCHES_PER_CALL:
            break
    suffix = f", {skipped} cannot be" if skipped else ""
    output.note(f"headrace: {matched} matched, {redriven} redriven{suffix}" + (" (dry run)" if dry_run else ""))


async def discard(
    session: Session,
    ids: Ids = None,
    queue: QueueOption = "",
    kind: KindOption = "",
    reason: ReasonOption = "",
    everything: AllOption = False,
    dry_run: DryRunOption = False,
    yes: YesOption = False,
) -> None:
    """Close dead letters for good: their tasks become CANCELLED."""
    choice = _choice(session, ids, queue, kind, reason, everything)
    if not yes and not dry_run:
        confirmed(f"discard {choice.words}")
    letters = list(choice.ids)
    if session.json and choice.filter is not None:
        letters = [letter.id async for letter in session.client.dead_letters.list(choice.filter)]
    matched = discarded = 0
    while True:
        response = await session.client.dead_letters.discard(choice.ids, filter=choice.filter, dry_run=dry_run)
        matched, discarded = matched + response.matched, discarded + response.discarded
        if choice.filter is None or response.discarded == 0 or response.matched < MATCHES_PER_CALL:
            break
    if session.json:
        await _write_letters(session, letters)
    output.note(f"headrace: {matched} matched, {discarded} discarded" + (" (dry run)" if dry_run else ""))


async def _write_letters(session: Session, ids: list[str]) -> None:
    """Print dead letters in the order of `ids`, read a few at a time."""
    for start in range(0, len(ids), READS_AT_ONCE):
        chunk = ids[start : start + READS_AT_ONCE]
        for letter in await asyncio.gather(*(session.client.dead_letters.get(one) for one in chunk)):
            output.write_message(letter)


def _write_tasks(session: Session, response: dead_letter_pb2.RedriveDeadLettersResponse) -> None:
    for task in response.tasks:
        if session.json:
            output.write_message(task)
        else:
            output.write_line(task.id)


def _choice(session: Session, ids: list[str] | None, queue: str, kind: str, reason: str, everything: bool) -> Choice:
    filtered = bool(queue or kind or reason)
    if bool(ids) + filtered + everything != 1:
        raise usage_failure("say which dead letters: IDs, or --queue, --kind, --reason, or --all")
    if ids:
        return Choice(tuple(ids), None)
    return Choice((), _filter(session, queue, kind, reason))


def _filter(
    session: Session, queue: str, kind: str, reason: str, *, resolved: bool = False
) -> dead_letter_pb2.DeadLetterFilter:
    from headrace.administration import dead_letter_filter  # noqa: PLC0415 - needs gRPC, which --help does not

    return dead_letter_filter(
        namespace=session.namespace or "", queue=queue, kind=kind, reason=reason, include_resolved=resolved
    )


for _name, _function in (
    ("list", list_letters),
    ("show", show),
    ("redrive", redrive),
    ("discard", discard),
):
    verb(app, _name)(_function)
