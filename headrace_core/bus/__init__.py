"""The bus: NATS behind one seam. nats-py is imported here and nowhere else, and none of its errors leaves.

The broker dispatches and never holds the only copy of anything: whatever fails here costs latency, not a task.
"""
