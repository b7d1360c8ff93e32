"""What runs in a client process: the driver, its near cache, and calls that follow a uid."""
