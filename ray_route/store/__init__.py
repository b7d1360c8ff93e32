"""All that knows Redis: keys, scripts, connections. Nothing here knows Ray."""
