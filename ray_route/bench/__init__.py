"""The load benchmark for clusters: clients as Ray tasks on every node, calls to real pods."""
