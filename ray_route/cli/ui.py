"""`ray-route ui`."""

from __future__ import annotations

from contextlib import suppress

import click

from ray_route.cli.cluster import NamespaceView
from ray_route.cli.output import console, in_namespace, print_json
from ray_route.cli.page.server import PageServer
from ray_route.cli.page.views import Views


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Default: any that is free.")
@in_namespace
def ui(namespace: NamespaceView, port: int, *, as_json: bool) -> int:
    """Serve a live page of a namespace to browsers of this machine, until Ctrl-C.

    It shows pods, their load and state, uids as they move, and why a uid is where it is; it
    changes nothing. Only who has the URL that is printed is served. From another machine:
    ssh -L 8300:localhost:8300 HOST, with --port 8300 there.

    \b
    Examples:
      ray-route ui
      ray-route ui -n game --port 8300
    """  # noqa: D301 - click's mark for text that is not wrapped
    with _serving(namespace, port) as server:
        if as_json:
            print_json({"url": server.url})
        else:
            text = f"{namespace.name} is shown at {server.url}"
            console().print(text, soft_wrap=True, markup=False)  # to be copied
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def _serving(namespace: NamespaceView, port: int) -> PageServer:
    """Listen on a port, or say that it can't be had."""
    try:
        return PageServer(Views(namespace), port)
    except OSError as error:
        raise click.UsageError(f"--port {port} can't be listened on: {error}") from error
