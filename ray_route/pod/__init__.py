"""The pod's own process: its lease, its orders, and which calls it may serve."""
