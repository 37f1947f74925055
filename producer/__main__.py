"""`python -m producer`."""

import sys

from headrace_core.runtime.run import run
from producer.app import ProducerService

if __name__ == "__main__":
    sys.exit(run("producer", ProducerService, default_listen="127.0.0.1:50051"))
