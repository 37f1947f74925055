"""What is measured, started fresh for each measure: the whole product, or Postgres and NATS alone, set up alike."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from bench.measure import Scope
from headrace_core.stack.dev import LocalStack, StackOptions, together
from headrace_core.stack.logs import StackLog
from headrace_core.stack.nats import NatsServer
from headrace_core.stack.postgres import Postgres
from headrace_core.stack.services import Service, inherited_environment, loopback

ROOT = Path(__file__).resolve().parents[1]
HANDLERS = "bench.handlers"
DATABASE = "bench"


@dataclass(frozen=True, slots=True)
class Servers:
    """Postgres and NATS alone: where they are, and their processes by name."""

    database_url: str
    nats_url: str
    pids: Mapping[str, int]


@asynccontextmanager
async def servers(scope: Scope) -> AsyncIterator[Servers]:
    """Start Postgres and NATS as the local stack does, in a fresh folder."""
    with tempfile.TemporaryDirectory(dir=scope.folder, prefix="servers-") as name:
        folder = Path(name)
        log = StackLog(folder / "log")
        postgres, nats = Postgres(folder / "postgres", log), NatsServer(folder / "nats", log)
        try:
            await together(postgres.start(), nats.start())
            assert postgres.pid is not None
            assert nats.pid is not None
            pids = {"postgres": postgres.pid, "nats": nats.pid}
            yield Servers(await postgres.create_database(DATABASE), nats.url, pids)
        finally:
            await nats.stop()
            await postgres.stop()
            log.close()


@asynccontextmanager
async def product(
    scope: Scope,
    *,
    consumers: int = 1,
    producers: int = 1,
    config: str = "",
    environment: Mapping[str, str] = MappingProxyType({}),
) -> AsyncIterator[LocalStack]:
    """Start the local stack with the kinds of bench.handlers in a fresh folder, all settings at their defaults.

    `config`, a headrace.toml, and `environment` are for what the measure is about.
    """
    with tempfile.TemporaryDirectory(dir=scope.folder, prefix="product-") as name:
        options = StackOptions(
            Path(name) / "data",
            consumers=consumers,
            handlers=(HANDLERS,),
            environment={**_configured(Path(name), config), **environment},
            working_folder=ROOT,
        )
        async with LocalStack(options.data_dir, options=options) as stack:
            more = [await _add_producer(stack, number) for number in range(2, producers + 1)]
            try:
                yield stack
            finally:
                for service in more:
                    await service.stop()


def _configured(folder: Path, config: str) -> dict[str, str]:
    if not config:
        return {}
    file = folder / "headrace.toml"
    file.write_text(config, encoding="utf-8")
    return {"HEADRACE_CONFIG": str(file)}


async def _add_producer(stack: LocalStack, number: int) -> Service:
    """One more producer, with the settings of the first. It is in `stack.services`, so that it is measured as well."""
    environment = inherited_environment(ROOT) | {
        "HEADRACE_CREATE_QUEUES": "true",
        "HEADRACE_LOG_FORMAT": "console",
        "HEADRACE_DATABASE_URL": stack.endpoints.database_url,
        "HEADRACE_NATS_URL": stack.endpoints.nats_url,
        "HEADRACE_LISTEN": loopback(0),
        "HEADRACE_OPS_LISTEN": loopback(0),
    }
    name = f"producer-{number}"
    log = StackLog(stack.data_dir / f"{name}.log")
    service = Service(name, "producer", environment, log, stack.data_dir / "run", working_folder=ROOT)
    await service.start()
    stack.services[name] = service
    return service
