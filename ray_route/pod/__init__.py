"""The pod's own process: its lease, its commands, and which calls it may serve."""
