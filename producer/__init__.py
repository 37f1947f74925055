"""The producer: accepts and cancels tasks, publishes what is committed, and administers queues and dead
letters.
"""
