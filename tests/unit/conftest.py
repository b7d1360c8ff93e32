from __future__ import annotations

import pytest
from helpers import ManualClock
from hypothesis import settings
from hypothesis.strategies import from_regex

# A busy machine is no failure, and a test run leaves no files behind.
settings.register_profile("tests", deadline=None, database=None, max_examples=60)
settings.load_profile("tests")

# What it needs is compiled now, and by nobody else meanwhile: Python 3.11 fails ("recursion depth
# mismatch") if a thread that some test has left compiles something in the midst of it.
from_regex("").validate()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()
