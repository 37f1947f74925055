"""What TLS and identities cost: unary submits to one producer without, and to another with mutual TLS and tokens.

`python -m tests.scenarios.security_cost [--rounds 6] [--seconds 3]`, about a minute. Both write to one database and one
NATS, and take turns; figures of different runs do not compare.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from bench.payloads import payload
from headrace.v1 import producer_pb2, producer_pb2_grpc
from headrace_core.bus.declaration import StreamNames
from headrace_core.bus.topology import apply_topology
from headrace_core.db.migrate import migrate
from headrace_core.db.pool import Database
from headrace_core.settings.queues import QueueSettings
from headrace_core.stack.logs import StackLog
from headrace_core.stack.nats import NatsServer
from headrace_core.stack.postgres import Postgres
from headrace_core.stack.services import Service
from headrace_core.tasks.kinds import register_kinds
from tests.access_rig import Issuer, as_, bearer, jwt_table, write_access_file
from tests.fixtures.authority import Authority, MountedSecret
from tests.producer_harness import KINDS

CALLERS = 64
GRANTS = {"load": ["submit:*"]}
TO_REACH = 0.8


@dataclass
class Way:
    """One way to submit, and what it reached in each round."""

    name: str
    stub: producer_pb2_grpc.ProducerServiceAsyncStub
    metadata: tuple[tuple[str, str], ...] = ()
    rates: list[float] = field(default_factory=list)

    async def drive(self, seconds: float) -> float:
        """Submits per second of CALLERS callers."""
        done, end = 0, time.monotonic() + seconds

        async def call() -> None:
            nonlocal done
            while time.monotonic() < end:
                request = producer_pb2.SubmitTaskRequest(
                    kind="plain", payload_json=payload(done), idempotency_key=str(uuid.uuid4())
                )
                await self.stub.SubmitTask(request, timeout=20, metadata=self.metadata)
                done += 1

        await asyncio.gather(*(call() for _ in range(CALLERS)))
        return done / seconds


@asynccontextmanager
async def servers(folder: Path, log: StackLog) -> AsyncIterator[dict[str, str]]:
    """Postgres with the schema and NATS with the streams; what a producer is told of them."""
    postgres, nats = Postgres(folder / "postgres", log), NatsServer(folder / "nats", log)
    try:
        await asyncio.gather(postgres.start(), nats.start())
        url = await postgres.create_database("security_cost")
        await migrate(url)
        await apply_topology(nats.url, StreamNames(), [QueueSettings(name="default")])
        database = Database(url, max_size=1)
        await database.open()
        await register_kinds(database, KINDS)
        await database.close()
        yield {"HEADRACE_DATABASE_URL": url, "HEADRACE_NATS_URL": nats.url, "HEADRACE_LISTEN": "127.0.0.1:0"}
    finally:
        await asyncio.gather(nats.stop(), postgres.stop())


@asynccontextmanager
async def ways(folder: Path, log: StackLog, environ: dict[str, str]) -> AsyncIterator[list[Way]]:
    """A producer without anything, and one that asks for certificates and tokens, with a channel to each."""
    authority, issuer, secret = Authority(), Issuer(), MountedSecret(folder / "tls")
    secret.put(authority.server(), authority.certificate)
    (folder / "jwks.json").write_bytes(issuer.jwks())
    table = jwt_table(f'jwks_file = "{folder / "jwks.json"}"')
    closed = {
        "HEADRACE_TLS_CERT_FILE": str(secret.certificate),
        "HEADRACE_TLS_KEY_FILE": str(secret.key),
        "HEADRACE_TLS_CLIENT_CA_FILE": str(secret.authority),
        "HEADRACE_AUTH_FILE": str(write_access_file(folder / "access.toml", GRANTS, table)),
    }
    base = dict(os.environ) | environ
    plain = Service("plain", "producer", base, log, folder)
    guarded = Service("guarded", "producer", base | closed, log, folder)
    try:
        await asyncio.gather(plain.start(), guarded.start())
        assert plain.addresses.grpc is not None
        assert guarded.addresses.grpc is not None
        mine = authority.issue("load")
        credentials = grpc.ssl_channel_credentials(authority.certificate, mine.key, mine.certificate)
        async with (
            grpc.aio.insecure_channel(plain.addresses.grpc) as open_channel,
            grpc.aio.secure_channel(guarded.addresses.grpc, credentials) as safe_channel,
        ):
            guarded_stub: producer_pb2_grpc.ProducerServiceAsyncStub
            guarded_stub = producer_pb2_grpc.ProducerServiceStub(safe_channel)  # type: ignore[assignment]
            token = bearer(issuer.token(headrace_grants=["submit:*"]))
            yield [
                Way("without", producer_pb2_grpc.ProducerServiceStub(open_channel)),  # type: ignore[arg-type]
                Way("mutual TLS and a static token", guarded_stub, as_("load")),
                Way("mutual TLS and a JWT", guarded_stub, token),
            ]
    finally:
        await asyncio.gather(plain.stop(), guarded.stop())


async def measure(rounds: int, seconds: float) -> list[Way]:
    """Each way in each round, in an order that turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = StackLog(folder / "log")
        try:
            async with servers(folder, log) as environ, ways(folder, log, environ) as found:
                for way in found:
                    await way.drive(min(seconds, 2.0))
                for number in range(rounds):
                    for way in found[number % 3 :] + found[: number % 3]:
                        way.rates.append(await way.drive(seconds))
                return found
        finally:
            log.close()


def report(found: list[Way]) -> str:
    """A line for each way: the median rate, and the median of its ratios to the first."""
    first = found[0]
    lines = []
    for way in found:
        ratios = [rate / reference for rate, reference in zip(way.rates, first.rates, strict=True)]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        lines.append(
            f"{way.name:<32} {statistics.median(way.rates):7.0f}/s   {statistics.median(ratios):.2f} ({spread})"
        )
    return "\n".join([*lines, f"to reach: {TO_REACH}"])


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    print(report(asyncio.run(measure(options.rounds, options.seconds))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
