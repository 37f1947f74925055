"""What most of these tests stand on."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fixtures.consumers import ConsumerRig


@pytest.fixture
async def rig(database_url: str, nats_url: str, tmp_path: Path) -> AsyncIterator[ConsumerRig]:
    """Consumers in this process, on a database and a broker of the test's own."""
    rig = ConsumerRig(database_url, nats_url, tmp_path)
    await rig.open()
    try:
        yield rig
    finally:
        await rig.close()


@pytest.fixture
async def relay(rig: ConsumerRig) -> AsyncIterator[None]:
    """What the producer's relay does: bring due retries to the stream."""
    task = asyncio.create_task(rig.relay())
    yield
    task.cancel()
    await asyncio.wait([task])
