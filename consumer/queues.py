"""The settings of the queues that this consumer pulls: as declared in headrace.toml, or as Postgres has them."""

from __future__ import annotations

from consumer.registry import Registry
from headrace_core.db.pool import Database
from headrace_core.settings.environment import ServiceSettings
from headrace_core.settings.errors import SettingsError
from headrace_core.settings.queues import QueueSettings
from headrace_core.tasks.kinds import undeclared_queues
from headrace_core.tasks.queues import declare, read_loads


async def queues_of(database: Database, registry: Registry, settings: ServiceSettings) -> dict[str, QueueSettings]:
    """The settings of every queue that the handlers name; with HEADRACE_CREATE_QUEUES missing ones are declared.

    Raises:
        SettingsError: a handler names a queue that nobody declared.
        DatabaseUnavailable: try again.
    """
    declared = dict(settings.topology.queues)
    await declare_missing_queues(database, registry, settings)
    unknown = [name for name in registry.queues if name not in declared]
    if unknown:
        declared |= {
            name: load.settings for name, load in (await read_loads(database, bound=1)).items() if name in unknown
        }
    return {name: declared[name] for name in sorted(registry.queues)}


async def declare_missing_queues(database: Database, registry: Registry, settings: ServiceSettings) -> None:
    """Declare, with what headrace.toml says or with defaults, the queues that Postgres does not know.

    Those in headrace.toml always; others only with HEADRACE_CREATE_QUEUES.

    Raises:
        SettingsError: there is another, naming it, the handler and how to declare it.
    """
    missing = await undeclared_queues(database, sorted(registry.queues))
    for name in missing:
        if name not in settings.topology.queues and not settings.create_queues:
            handler = registry.queues[name][0]
            raise SettingsError(
                f"{handler.origin} (kind {handler.kind!r}) names the queue {name!r}, which nobody declared; add "
                f'[[queues]] name = "{name}" to headrace.toml, or set HEADRACE_CREATE_QUEUES=true in development'
            )
    topology = settings.topology.with_queues(missing)
    await declare(database, [topology.queues[name] for name in missing])
