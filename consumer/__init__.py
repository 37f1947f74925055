"""The consumer: takes units of work, runs their handlers, settles what came of it."""
