"""For tests of programs that use ray_route; see `docs/howto/testing.md`.

`local` serves a class of pods without Ray, in milliseconds. `ray_route.testing.plugin` is a pytest
plugin whose fixtures give a namespace of one's own on a shared Ray. `faults` break real services.
"""

from ray_route.testing.local import LocalService, local
from ray_route.testing.local_calls import LocalMethod, LocalResponse, LocalStream, LocalUid

__all__ = ["LocalMethod", "LocalResponse", "LocalService", "LocalStream", "LocalUid", "local"]
