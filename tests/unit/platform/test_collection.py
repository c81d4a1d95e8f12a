"""No garbage is collected while modules are imported, and what was switched off stays off."""

import gc
from contextlib import suppress

import pytest

from moe_megatron.platform.collection import without_collection


@pytest.mark.parametrize("enabled", [True, False])
def test_collections_are_off_inside_and_as_they_were_after(enabled):
    before = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with suppress(ImportError), without_collection():
            assert not gc.isenabled()
            raise ImportError
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if before else gc.disable)()
