"""What must be there before the first service starts: the schema and the streams."""

from collections.abc import Mapping
from pathlib import Path

from headrace_core.bus.errors import BusError
from headrace_core.bus.topology import StreamNames, apply_topology
from headrace_core.db.migrate import migrate
from headrace_core.settings.environment import ServiceSettings, load_settings
from headrace_core.stack.errors import StackError


def check_settings(environment: Mapping[str, str], working_folder: Path) -> ServiceSettings:
    """Read the settings as the services will: a mistake is said once, before anything starts.

    Raises SettingsError.
    """
    return load_settings(environment, default_listen="127.0.0.1:0", cwd=working_folder)


async def prepare(database_url: str, nats_url: str, settings: ServiceSettings) -> list[str]:
    """Apply the missing migrations and the declared topology; return a line for each change. Raises StackError."""
    applied = [f"migration {version} applied" for version in await migrate(database_url, after_deploy=True)]
    if settings.broker == "none":
        return applied
    names = StreamNames(prefix=settings.stream_prefix, subjects=settings.subject_prefix)
    try:
        return applied + await apply_topology(nats_url, names, settings.topology.queues.values())
    except BusError as error:
        raise StackError(error.message) from error
