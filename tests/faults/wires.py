"""The wires between services, servers and clients: a TCP proxy on each, so that a fault can sit on one of them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass

from headrace_core.stack.ports import free_port
from tests.fixtures.proxy import Proxy

CLIENTS = "clients"


@dataclass(frozen=True)
class Ports:
    """The ports that the stack is told to take, chosen before it starts so that the wires can lead there."""

    postgres: int
    nats: int
    producer: int
    status: int

    @classmethod
    def free(cls) -> Ports:
        """Ports that were free a moment ago."""
        return cls(*(free_port() for _ in range(4)))


class Wires:
    """All proxies of a run by name: `producer>postgres`, `consumer-1>nats`, `clients>status`."""

    def __init__(self, proxies: Mapping[str, Proxy]) -> None:
        self._proxies = proxies

    def of(self, name: str) -> Proxy:
        """The proxy of a wire."""
        return self._proxies[name]

    def address(self, service: str) -> str:
        """Where clients reach a service."""
        return f"127.0.0.1:{self.of(f'{CLIENTS}>{service}').port}"

    def environment(self, service: str) -> dict[str, str]:
        """The addresses of the servers as this service sees them."""
        postgres, nats = self.of(f"{service}>postgres").port, self.of(f"{service}>nats").port
        return {
            "HEADRACE_DATABASE_URL": f"postgresql://postgres@127.0.0.1:{postgres}/headrace",
            "HEADRACE_NATS_URL": f"nats://127.0.0.1:{nats}",
        }

    async def restore(self) -> None:
        """End every fault on every wire."""
        for proxy in self._proxies.values():
            await proxy.restore()


@contextlib.asynccontextmanager
async def wired(ports: Ports, services: Sequence[str]) -> AsyncIterator[Wires]:
    """Lay the wires of `services` to the servers, and of the clients to producer and status."""
    targets = {f"{service}>postgres": ports.postgres for service in services}
    targets |= {f"{service}>nats": ports.nats for service in services}
    targets |= {f"{CLIENTS}>producer": ports.producer, f"{CLIENTS}>status": ports.status}
    async with contextlib.AsyncExitStack() as cleanup:
        yield Wires({name: await cleanup.enter_async_context(Proxy(port)) for name, port in targets.items()})
