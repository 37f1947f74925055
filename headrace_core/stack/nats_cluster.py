"""Three nats-servers on loopback that form a cluster: what one cannot show are R3 streams, leaders and a majority."""

import asyncio
from pathlib import Path

from headrace_core.stack.logs import StackLog
from headrace_core.stack.nats import NatsServer
from headrace_core.stack.ports import LOOPBACK, free_port

NODES = 3


class NatsCluster:
    """Three nodes with JetStream, each with a folder of its own below `store_dir`.

    The ports are chosen when it is made and kept: a node that is started again is found where it was. Another process
    may take one first; then `start` raises StackError.
    """

    def __init__(self, store_dir: Path, log: StackLog, *, pass_fds: tuple[int, ...] = ()) -> None:
        self.name = "nats-cluster"
        routes = [free_port() for _ in range(NODES)]
        peers = ",".join(f"nats://{LOOPBACK}:{port}" for port in routes)
        self.nodes = [
            NatsServer(
                store_dir / f"n{number}",
                log,
                port=free_port(),
                arguments=(
                    *("--name", f"n{number}", "--cluster_name", "headrace"),
                    *("--cluster", f"nats://{LOOPBACK}:{route}", "--routes", peers),
                ),
                pass_fds=pass_fds,
            )
            for number, route in enumerate(routes, start=1)
        ]

    @property
    def url(self) -> str:
        """URLs of all nodes, separated by commas, for clients."""
        return ",".join(node.url for node in self.nodes)

    def node(self, name: str) -> NatsServer:
        """The node that calls itself `name` (`n1`, `n2`, `n3`), as `cluster.leader` of a stream's info says."""
        return self.nodes[int(name.removeprefix("n")) - 1]

    async def start(self) -> None:
        """Start every node that does not run. JetStream answers once two of them have chosen a leader."""
        await asyncio.gather(*(node.start() for node in self.nodes))

    async def stop(self) -> None:
        """Stop every node, a frozen one too. Idempotent."""
        for node in self.nodes:
            node.resume()
        await asyncio.gather(*(node.stop() for node in self.nodes))

    async def kill_node(self, name: str) -> None:
        """Kill one node as a crash would."""
        await self.node(name).kill()

    async def start_node(self, name: str) -> None:
        """Start a node that was killed, where it was and with its data."""
        await self.node(name).start()
