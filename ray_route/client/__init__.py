"""What runs in a client process: clients, their near cache, and calls that follow a uid."""
