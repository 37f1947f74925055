"""The private library of the three services: settings, database, bus, RPC, runtime, and the state machine of a task."""

import os

# gRPC's core writes a line of its own to standard error for each handshake that fails, and strangers make as many as
# they like: what is there is our log, in JSON. Read when grpc is imported, so it stands here, before that.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
