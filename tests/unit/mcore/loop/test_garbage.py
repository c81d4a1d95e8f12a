"""What lasts is left out of collections while a run goes on, and visited again afterwards."""

import gc
import weakref

import pytest

from moe_megatron.mcore.loop import garbage
from moe_megatron.mcore.loop.garbage import LastingObjects


@pytest.fixture(autouse=True)
def nothing_is_set_aside():
    """As in a process that no test has prepared; the tests after this one get theirs back."""
    before = gc.get_freeze_count()
    gc.unfreeze()
    yield
    if before:
        gc.collect()
        gc.freeze()


class Ring:
    """An object that only a collection frees."""

    def __init__(self) -> None:
        self.self = self


@pytest.fixture
def lasting(monkeypatch: pytest.MonkeyPatch) -> LastingObjects:
    monkeypatch.setattr(garbage, "_FEW", 1000)
    return LastingObjects()


def test_what_a_run_leaves_behind_is_collected_after_it(lasting: LastingObjects) -> None:
    ring = Ring()
    gone = weakref.ref(ring)
    lasting.on_train_start([], 0)
    del ring
    gc.collect()
    assert gone() is not None
    lasting.release()
    gc.collect()
    assert gone() is None


def test_garbage_from_before_a_run_does_not_last(lasting: LastingObjects) -> None:
    gone = weakref.ref(Ring())
    lasting.on_train_start([], 0)
    lasting.release()
    assert gone() is None


def test_what_others_have_set_aside_stays_so() -> None:
    gc.collect()
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        lasting = LastingObjects()
        lasting.on_train_start([], 0)
        lasting.release()
        # Some of them have ended meanwhile; had all been given back, none would be left.
        assert gc.get_freeze_count() > frozen / 2
    finally:
        gc.unfreeze()
