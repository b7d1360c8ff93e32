from __future__ import annotations

import pytest
from helpers import ManualClock
from hypothesis import settings

# A busy machine is no failure, and a test run leaves no files behind.
settings.register_profile("tests", deadline=None, database=None, max_examples=60)
settings.load_profile("tests")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()
