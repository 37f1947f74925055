"""Fixtures of all tests. Real servers, a fresh database a test, and a check that nothing is left behind."""

import signal

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

# A background job of a shell without job control ignores SIGINT and passes that on to its children, which the tests
# interrupt. A handler of our own is not passed on.
signal.signal(signal.SIGINT, signal.default_int_handler)

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
