"""Which of the named statements each service runs: what its group role has to be allowed, and all that it needs."""

import re

from headrace_core.db import queries
from headrace_core.tasks import parts

ALL = "*"
# File of headrace_core/tasks/sql to the names in it.
RUN_BY: dict[str, dict[str, str]] = {
    "producer": {
        "audit": ALL,
        "submit": ALL,
        "cancel": ALL,
        "dead_letters": ALL,
        "publication": ALL,
        "queues": ALL,
        "reconciliation": ALL,
        "retention": ALL,
        "streams": ALL,
        "kinds": "read",
        "renew": "read_leases",
        "settle": "lock_tasks create_merges reschedule fail_units end_tasks",
    },
    "consumer": {
        "claim": ALL,
        "settle": ALL,
        "report": ALL,
        "renew": "renew clear_suspicion save_checkpoint",
        "kinds": "register undeclared upsert_consumer remove_consumer write_inference",
        "queues": "declare loads",
        "dead_letters": "find_letters record_unparseable",
    },
    "status": {
        "reading": ALL,
        "scaling": ALL,
        "kinds": "live_consumers read_inference",
        "queues": "figures rates",
    },
}
OTHERS = {
    "producer": {"records": "select * from headrace_core.task_records where id = any(%(ids)s)"},
    "consumer": {
        name: sql for name, sql in vars(parts).items() if isinstance(sql, str) and "from headrace_core.units" in sql
    },
    "status": {},
}
VERIFY = "select version from headrace_core.migrations"
_LIMIT = "%(limit)s"  # `fetch first null rows` is refused as such
_PARAMETER = re.compile(r"%\(\w+\)[sbt]")


def of(service: str) -> dict[str, str]:
    """The statements of a service by `file.name`, with null for each parameter."""
    found = {"verify": VERIFY, **OTHERS[service]}
    for file, names in RUN_BY[service].items():
        loaded = queries.load("headrace_core.tasks", f"sql/{file}.sql")
        chosen = loaded if names == ALL else {name: loaded[name] for name in names.split()}
        found |= {f"{file}.{name}": sql for name, sql in chosen.items()}
    return {name: _PARAMETER.sub("null", sql.replace(_LIMIT, "1")) for name, sql in found.items()}
