"""Become another program that dies with its parent.

Run as a script: `python -I -S bound_exec.py PARENT_PID SIGNAL PROGRAM ARGUMENT…`. It asks Linux to send
SIGNAL to this process when the parent is gone (PR_SET_PDEATHSIG survives exec), then becomes PROGRAM. So a
`kill -9` of the stack leaves nothing behind.

A script instead of `preexec_fn`: Python code between fork and exec is unsafe in a process with threads, and
gRPC has fork handlers. It costs about 20 ms a start. Imports nothing of ours, to keep it that way.
On systems without prctl the program starts all the same, only without the tie.
"""

import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent_pid: int, signal_number: int) -> None:
    """Ask for `signal_number` when the parent ends; end at once if it already has."""
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died before the call above: then no signal will ever come.
    if os.getppid() != parent_pid:
        sys.exit(f"the parent process {parent_pid} is gone")


def main(arguments: list[str]) -> None:
    """Tie this process to its parent and become the program named by the arguments."""
    parent_pid, signal_number, *program = arguments
    die_with_parent(int(parent_pid), int(signal_number))
    try:
        os.execvp(program[0], program)  # noqa: S606 - becoming another program is the purpose
    except OSError as error:
        sys.exit(f"cannot start {program[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
