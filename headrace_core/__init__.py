"""The private library of the three services: settings, database, bus, RPC, runtime, and the state machine of a task."""
