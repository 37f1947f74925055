"""The SDK before several replicas: names that stand for them, replicas that come, stop and die."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest

from headrace import Client
from headrace.v1 import producer_pb2, producer_pb2_grpc
from headrace_core.rpc.server import ConnectionAge, GrpcServer
from tests.contract.scripted import Script, accepted, refusal, serving
from tests.deploy.dns import DnsServer
from tests.fixtures.waiting import eventually

NAME = "headrace-producer"


class Replica(producer_pb2_grpc.ProducerServiceServicer):
    """A producer that accepts everything."""

    def __init__(self) -> None:
        self.submits = 0

    async def SubmitTask(
        self, request: producer_pb2.SubmitTaskRequest, _context: object
    ) -> producer_pb2.SubmitTaskResponse:
        self.submits += 1
        return accepted(request)

    async def SubmitTasks(self, request: object, _context: object) -> producer_pb2.SubmitTasksResponse:
        raise NotImplementedError

    async def CancelTask(self, request: object, _context: object) -> producer_pb2.CancelTaskResponse:
        raise NotImplementedError


class Service:
    """A headless Service: replicas on loopback addresses of their own, one port, a name for those that are there."""

    def __init__(self, age: ConnectionAge) -> None:
        self.replicas: dict[str, Replica] = {}
        self.target = ""
        self._age = age
        self._servers: dict[str, GrpcServer] = {}
        self._dns = DnsServer(self._addresses)
        self._port = 0

    async def __aenter__(self) -> "Service":
        await self._dns.start("127.0.0.1")
        await self.add("127.0.0.2")
        self.target = f"dns://{self._dns.address}/{NAME}:{self._port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        for address in list(self._servers):
            await self.remove(address)
        self._dns.stop()

    async def add(self, address: str) -> Replica:
        server = GrpcServer(f"{address}:{self._port}", name="producer", age=self._age)
        replica = Replica()
        server.add(producer_pb2_grpc.add_ProducerServiceServicer_to_server, replica, "headrace.v1.ProducerService")
        self._port = int((await server.start()).rpartition(":")[2])
        server.set_serving(True)
        self._servers[address], self.replicas[address] = server, replica
        return replica

    async def remove(self, address: str) -> None:
        await self._servers.pop(address).stop(1.0)

    def _addresses(self, name: str) -> list[str] | None:
        return sorted(self._servers) if name == NAME else None


async def test_a_service_whose_replicas_are_all_replaced_is_found_within_seconds() -> None:
    async with Service(ConnectionAge()) as service, Client(service.target, "127.0.0.1:1", timeout=10) as client:
        await client.submit("echo")
        await service.remove("127.0.0.2")
        replaced = await service.add("127.0.0.3")
        # gRPC by itself would look the name up again 30 s after the first time.
        await client.submit("echo")
        assert replaced.submits == 1


async def test_an_old_connection_is_ended_and_new_replicas_get_their_share() -> None:
    async with Service(ConnectionAge(1.0, 1.0)) as service, Client(service.target, "127.0.0.1:1") as client:
        await client.submit("echo")
        added = await service.add("127.0.0.3")

        async def shared() -> int:
            await client.submit("echo")
            return added.submits

        await eventually(shared, within=10, what="a submit at the new replica")


async def test_without_an_age_a_new_replica_stays_unknown() -> None:
    """What the age is for: nothing else makes a client that has all it needs look the name up again."""
    async with Service(ConnectionAge()) as service, Client(service.target, "127.0.0.1:1") as client:
        await client.submit("echo")
        added = await service.add("127.0.0.3")
        for _ in range(50):
            await client.submit("echo")
        assert added.submits == 0


@asynccontextmanager
async def two_replicas() -> AsyncIterator[tuple[Script, Script, Client]]:
    async with AsyncExitStack() as stack:
        one, other = Script(), Script()
        ports = [(await stack.enter_async_context(serving(script))).port for script in (one, other)]
        target = f"ipv4:127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}"
        yield one, other, await stack.enter_async_context(Client(target, "127.0.0.1:1"))


@pytest.mark.parametrize("reason", ["DRAINING", "DATABASE_UNAVAILABLE", ""])
async def test_what_one_replica_refuses_another_gets_at_once(reason: str) -> None:
    async with two_replicas() as (one, other, client):

        async def both_are_asked() -> bool:
            await client.submit("echo")
            return bool(one.asked("SubmitTask") and other.asked("SubmitTask"))

        await eventually(both_are_asked)
        one.answers["SubmitTask"] = refusal(grpc.StatusCode.UNAVAILABLE, reason, "not here", retry_after=0.1)
        refused = len(one.asked("SubmitTask"))
        for _ in range(10):
            async with asyncio.timeout(2):
                await client.submit("echo")
        assert len(one.asked("SubmitTask")) > refused, "nothing was refused"
