"""What can go wrong at the database, translated once: services decide by these classes, never by a driver's."""

import psycopg
import psycopg_pool
from psycopg import errors as sqlstate

from headrace_core.errors import DatabaseUnavailable

__all__ = ["DataRejected", "DatabaseUnavailable", "is_repeatable", "is_shortage", "translate"]


DENIED = "42501"


class DataRejected(Exception):
    """Postgres refused the data of a statement (SQLSTATE classes 22, 23, 54): a row of the batch is bad."""

    def __init__(self, state: str, message: str) -> None:
        super().__init__(f"Postgres refused the data (SQLSTATE {state}): {message}")
        self.sqlstate = state


def is_repeatable(error: BaseException) -> bool:
    """True for a deadlock or a serialization failure: the same transaction may be run again."""
    return isinstance(error, sqlstate.DeadlockDetected | sqlstate.SerializationFailure)


def is_shortage(error: BaseException) -> bool:
    """True where Postgres has run out of disk, memory or connections (SQLSTATE class 53)."""
    return isinstance(error, psycopg.Error) and (error.sqlstate or "")[:2] == "53"


def translate(error: BaseException) -> Exception | None:
    """The domain's error for one of the driver's; None if it is a defect of ours (a wrong statement, say)."""
    if isinstance(error, psycopg_pool.PoolTimeout | psycopg_pool.PoolClosed | TimeoutError):
        return DatabaseUnavailable("no connection to Postgres became free in time")
    if not isinstance(error, psycopg.Error):
        return None
    state = error.sqlstate or ""
    if state[:2] in ("22", "23", "54"):
        return DataRejected(state, error.diag.message_primary or type(error).__name__)
    if state == DENIED:
        return _denied(error)
    if is_shortage(error):
        return DatabaseUnavailable(f"Postgres is out of resources (SQLSTATE {state}): {_first_line(error)}")
    does_not_answer = _says_unavailable(error, state)
    return DatabaseUnavailable(f"Postgres does not answer: {_first_line(error)}") if does_not_answer else None


def _denied(error: psycopg.Error) -> DatabaseUnavailable:
    """Nothing is lost by it: whoever asked tries again, and goes on once it is granted."""
    return DatabaseUnavailable(
        f"Postgres refuses (SQLSTATE {DENIED}): {_first_line(error)}; the user of HEADRACE_DATABASE_URL is no member "
        "of its service's group, or the grants are missing: run headrace db migrate as the owner"
    )


def _says_unavailable(error: psycopg.Error, state: str) -> bool:
    """Connection lost (08), shutting down (57), a failing disk (58), read-only after a fail-over (25006)."""
    broken = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError) and not state
    return broken or state[:2] in ("08", "57", "58") or state == "25006"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
