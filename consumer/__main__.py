"""`python -m consumer`."""

import sys

from consumer.app import ConsumerService
from headrace_core.runtime.run import run


def main() -> int:
    """Run until SIGTERM; the exit code."""
    return run("consumer", ConsumerService, default_listen="127.0.0.1:0")


if __name__ == "__main__":
    sys.exit(main())
