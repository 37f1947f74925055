"""The command line as a process."""

import asyncio
import os
import sys

BOUND = 30


async def headrace(*arguments: str, cwd: str | None = None, **environ: str) -> tuple[int | None, str]:
    """Run `headrace …`; its exit code and everything that it said."""
    program = (sys.executable, "-m", "headrace.cli", *arguments)
    process = await asyncio.create_subprocess_exec(
        *program, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, env=os.environ | environ, cwd=cwd
    )
    async with asyncio.timeout(BOUND):
        output, _ = await process.communicate()
    return process.returncode, output.decode()
