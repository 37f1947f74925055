"""`python -m status`."""

import sys

from headrace_core.runtime.run import run
from status.app import StatusService


def main() -> int:
    """Run until a signal; returns the exit code."""
    return run("status", StatusService, default_listen="127.0.0.1:50052")


if __name__ == "__main__":
    sys.exit(main())
