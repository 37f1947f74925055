"""`python -m tests.fuzz --minutes 10 [--seed N] [pytest's arguments]`: all targets, with random inputs."""

import argparse
import os
import secrets
import subprocess
import sys

TARGETS = 22
"""About how many there are; the time is divided by it."""


def main() -> int:
    """Run the fuzzers; pytest's exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    known, others = parser.parse_known_args()
    seconds = known.minutes * 60 / TARGETS
    sys.stdout.write(f"seed {known.seed}, {seconds:.0f} s for each target\n")
    sys.stdout.flush()
    environment = os.environ | {"FUZZ_SECONDS": str(seconds), "FUZZ_SEED": str(known.seed)}
    limit = f"--timeout={seconds * 3 + 120:.0f}"
    return subprocess.run(
        [sys.executable, "-m", "pytest", "tests/fuzz", limit, *others], env=environment, check=False
    ).returncode


if __name__ == "__main__":
    raise SystemExit(main())
