"""`headrace verify` on a real stack: the echo, the model, the status over gRPC and HTTP."""

import asyncio
import sys

from headrace_core.stack.dev import Endpoints


async def test_a_real_installation_is_verified(endpoints: Endpoints) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "headrace.cli", "verify", "--within", "40", "--http", endpoints.http),
        *("--producer", endpoints.producer, "--status", endpoints.status),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert (process.returncode, err) == (0, b""), out.decode()
    lines = [line.split()[:2] for line in out.decode().splitlines() if "!" not in line]
    assert lines == [["echo", "ok"], ["analysis", "ok"], ["system", "ok"], ["http", "ok"]]
