"""The strongest other task queues, measured beside Headrace on the same work."""
