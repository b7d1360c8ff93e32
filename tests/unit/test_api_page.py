"""The page of the Python API shows what is meant, and what it is worth."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = {"ray_route.placement", "ray_route.errors", "ray_route.testing.faults"}

# In a process of its own: Python 3.11 may fail to parse while another thread of it parses, too, as
# whoever logs an error does (python/cpython#106905).
READ = """
import json, sys
import griffe

root, *named = sys.argv[1:]
extensions = griffe.load_extensions(f"{root}/docs/griffe_defaults.py")
package = griffe.load("ray_route", search_paths=[root], extensions=extensions)
told = {}
for name in named:
    found = package[name.removeprefix("ray_route.")]
    functions = found.all_members.values() if found.is_class else [found]
    parameters = [each.parameters for each in functions if each.is_function]
    defaults = [str(parameter.default) for some in parameters for parameter in some]
    told[name] = {"is_module": found.is_module, "defaults": defaults}
print(json.dumps(told))
"""


@pytest.mark.slow
def test_names_are_no_modules_of_the_same_name_and_defaults_are_values():
    named = re.findall(r"(?m)^::: (\S+)", (ROOT / "docs" / "api.md").read_text())
    read = [sys.executable, "-c", READ, str(ROOT), *named]
    told = json.loads(subprocess.run(read, capture_output=True, check=True).stdout)
    assert {name for name, what in told.items() if what["is_module"]} == MODULES & set(named)
    defaults = [default for what in told.values() for default in what["defaults"]]
    assert "60.0" in defaults
    assert [each for each in defaults if re.fullmatch("[A-Z_]{3,}", each)] == []
