"""What the operations page tells people to run does what the page says."""

from dataclasses import replace
from pathlib import Path

from headrace_core.db.pool import Database
from headrace_core.tasks.publication import mark_published, of_submitted, take_unpublished
from tests.factories import submitted

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"


async def test_the_statement_offers_lost_messages_again(database_url: str) -> None:
    db = Database(database_url)
    await db.open()
    try:
        task = await submitted(db)
        await mark_published(db, [of_submitted(task)])
        (statement,) = [part.split("```")[0] for part in PAGE.read_text(encoding="utf-8").split("```sql\n")[1:]]
        assert await db.run(lambda tx: tx.execute(statement)) == 1
        assert await take_unpublished(db, 10, grace=60) == [replace(of_submitted(task), dispatch=2)]
    finally:
        await db.close()
