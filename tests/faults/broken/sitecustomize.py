"""Python imports this module at its start when this folder is on PYTHONPATH: the services of a run become a variant."""

import os
import sys

SERVICES = frozenset({"producer", "consumer", "status", "consumer.execution.worker"})
NAME = os.environ.get("FAULTS_BROKEN", "")

if NAME and SERVICES.intersection(sys.orig_argv):
    from tests.faults.broken.variants import VARIANTS

    # An exception would only be printed here, and the service would run unbroken.
    try:
        VARIANTS[NAME]()
    except Exception as error:
        raise SystemExit(f"the variant {NAME} cannot be made: {type(error).__name__}: {error}") from error
