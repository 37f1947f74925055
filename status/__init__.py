"""The status service: reads, live watches, and how the system is. Nothing in it changes a task."""
