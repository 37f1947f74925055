"""Fixtures of all tests. Real servers, a fresh database a test, and a check that nothing is left behind."""

from tests.fixtures.leaks import no_leaked_processes_or_threads, no_leaked_tasks
from tests.fixtures.servers import (
    database_url,
    empty_database_url,
    migrated_template,
    nats_server,
    nats_url,
    postgres_server,
    postgres_session,
    stack,
)

__all__ = [
    "database_url",
    "empty_database_url",
    "migrated_template",
    "nats_server",
    "nats_url",
    "no_leaked_processes_or_threads",
    "no_leaked_tasks",
    "postgres_server",
    "postgres_session",
    "stack",
]
