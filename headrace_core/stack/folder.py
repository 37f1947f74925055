"""The data folder of a stack: created private, held by one stack at a time."""

import asyncio
import contextlib
import fcntl
import os
from pathlib import Path
from typing import Self

from headrace_core.stack.errors import StackError

LOCK_WAIT_SECONDS = 15.0
POLL_SECONDS = 0.1


class FolderLock:
    """An flock on `<folder>/lock`, shared with the servers that write into the folder.

    The servers inherit `fd`, so the lock lasts until the last of them is gone: a stack started right after a
    `kill -9` waits for the old Postgres to end instead of running into it.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    async def take(cls, folder: Path) -> Self:
        """Take the lock of `folder`, creating the folder (mode 0700) when it is missing.

        Raises StackError when the folder cannot be written or another stack holds it.
        """
        path = folder / "lock"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise StackError(f"cannot write to the data folder {folder}: {error.strerror}") from error
        try:
            await _lock(fd, folder)
            os.truncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
        except BaseException:
            os.close(fd)
            raise
        return cls(fd)

    def release(self) -> None:
        """Give the lock back. Idempotent."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


async def _lock(fd: int, folder: Path) -> None:
    deadline = asyncio.get_running_loop().time() + LOCK_WAIT_SECONDS
    while not _try_lock(fd):
        holder = _holder(fd)
        if holder is not None and _is_alive(holder):
            raise StackError(f"the data folder {folder} is in use by another Headrace stack (process {holder})")
        if asyncio.get_running_loop().time() > deadline:
            raise StackError(
                f"servers of an earlier stack still run on {folder} although their parent ended; "
                f"find them with: fuser {folder / 'lock'}"
            )
        await asyncio.sleep(POLL_SECONDS)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(fd: int) -> int | None:
    with contextlib.suppress(ValueError):
        return int(os.pread(fd, 20, 0))
    return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
