"""What actors, clients and pods run on: the way into a namespace, waiting, metrics."""
