"""The command line. `main` is the entry point; everything heavy (gRPC, rich) is imported by the verb that needs it."""

from headrace.cli.entry import main

__all__ = ["main"]
