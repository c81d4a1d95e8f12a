"""The garbage collector is off inside, and afterwards as it was."""

import gc

import pytest

from moe_megatron.checkpoint.uncollected import uncollected


@uncollected()
def is_collecting() -> bool:
    return gc.isenabled()


def test_off_inside_and_on_afterwards():
    assert not is_collecting()
    assert gc.isenabled()


def test_on_again_after_an_error():
    with pytest.raises(ValueError, match="inside"), uncollected():
        raise ValueError("inside")
    assert gc.isenabled()


def test_stays_off_where_it_was_off():
    with uncollected():
        assert not is_collecting()
        assert not gc.isenabled()
    assert gc.isenabled()
