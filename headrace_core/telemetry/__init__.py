"""What the services say about themselves: logs for people and machines, metrics for dashboards and alerts."""
