"""A service as it is wanted: one detached actor keeps it so, whoever deployed it."""
