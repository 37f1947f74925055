"""What must be there before the first service starts: the schema and the streams."""

from collections.abc import Mapping
from pathlib import Path

from headrace_core.bus import topology
from headrace_core.bus.connection import Bus
from headrace_core.db.migrate import migrate
from headrace_core.settings.queues import load_topology

CONNECT_SECONDS = 10.0


async def prepare(
    database_url: str, nats_url: str, environment: Mapping[str, str], working_folder: Path
) -> list[str]:
    """Apply missing migrations and the topology declared in headrace.toml; return a line for each change."""
    applied = [f"migration {version} applied" for version in await migrate(database_url)]
    queues = load_topology(None, environment, working_folder)
    bus = Bus(nats_url, name="headrace-dev")
    await bus.connect(CONNECT_SECONDS)
    try:
        changes = await topology.apply(bus, topology.declared(queues))
    finally:
        await bus.close()
    return applied + changes
