"""Databases for questions of privileges."""

from collections.abc import Iterator

import psycopg
import pytest

from tests.fixtures.servers import PostgresSession

DATABASE = "headrace_forbidding"
_AUDIT = """
create table if not exists headrace_core.audit (
    id uuid primary key, at timestamptz not null default now(), who text, namespace text,
    before jsonb, after jsonb, outcome text
)
"""


@pytest.fixture(scope="session")
def forbidding_url(postgres_session: PostgresSession, migrated_template: str) -> Iterator[str]:
    """One database for all statements that must be refused; it has an audit table, whatever the schema brings."""
    server, loop = postgres_session.server, postgres_session.loop
    url = loop.run(server.create_database(DATABASE, template=migrated_template))
    with psycopg.connect(url) as owner:
        owner.execute(_AUDIT)
        owner.execute("select headrace_core.grant_services()")
    yield url
    loop.run(server.drop_database(DATABASE))
