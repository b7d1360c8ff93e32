"""Shows what a default is worth where the source names a constant, for mkdocstrings."""

from __future__ import annotations

import importlib
from typing import Any

from griffe import Extension, Function


class Defaults(Extension):
    """Writes `60.0`, not `_DEPLOY_S`."""

    def on_function(self, *, func: Function, **_: Any) -> None:
        """Take one function of the package."""
        for parameter in func.parameters:
            name = str(parameter.default or "")
            if name.isidentifier() and name.upper() == name:
                parameter.default = repr(getattr(importlib.import_module(func.module.path), name))
