"""Loopback ports: find a free one, and say clearly when a wanted one is taken."""

import socket

from headrace_core.stack.errors import StackError

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """Return a port that was free a moment ago. Somebody may take it first: the caller then tries again."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def require_free(port: int, option: str) -> None:
    """Raise StackError when `port` (0: any) is in use, naming the option that chose it.

    Asked before anything starts: gRPC binds with SO_REUSEPORT and would silently share the port of
    another server.
    """
    if port == 0:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError as error:
            raise StackError(
                f"port {port} ({option}) cannot be used: {error.strerror}; choose another, 0 takes any free one"
            ) from error
