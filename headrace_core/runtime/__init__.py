"""How a service lives: signals, ordered start, background tasks with a failure policy, drain, stop, exit codes."""
