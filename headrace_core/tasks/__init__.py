"""The life of a task: its words, its decisions, and the only code that changes its state."""
