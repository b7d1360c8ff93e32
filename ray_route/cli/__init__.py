"""The command line, `ray-route`: one file per group of commands."""

from ray_route.cli.app import main

__all__ = ["main"]
