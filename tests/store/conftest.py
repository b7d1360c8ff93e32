from __future__ import annotations

import pytest
from shardbench import Shard

from ray_route.store.connect import Store


@pytest.fixture
def shard(store: Store) -> Shard:
    """One shard of an empty store, as router 1 sees it."""
    return Shard(store)
