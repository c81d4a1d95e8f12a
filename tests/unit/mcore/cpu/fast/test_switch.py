"""One switch turns accelerators off, all or by name."""

import pytest

from moe_megatron.errors import ConfigError
from moe_megatron.mcore.cpu import fast
from moe_megatron.mcore.cpu.fast.kernels import routing, rows, swiglu, weighing


@pytest.mark.parametrize("value", ["", "0", " "])
def test_without_the_switch_everything_is_on(value, monkeypatch):
    monkeypatch.setenv(fast.SWITCH, value)
    assert all(fast.enabled(name) for name in fast.ACCELERATORS)


def test_switch_set_to_one_turns_everything_off(monkeypatch):
    monkeypatch.setenv(fast.SWITCH, "1")
    assert not any(fast.enabled(name) for name in fast.ACCELERATORS)


def test_names_turn_only_those_off(monkeypatch):
    monkeypatch.setenv(fast.SWITCH, "kernels, experts")
    off = {name for name in fast.ACCELERATORS if not fast.enabled(name)}
    assert off == {"kernels", "experts"}


@pytest.mark.parametrize("module", [routing, rows, swiglu, weighing], ids=lambda m: m.__name__)
def test_no_kernel_is_given_out_while_they_are_off(module, monkeypatch):
    monkeypatch.setenv(fast.SWITCH, "kernels")
    assert module._compiled() is None


def test_unknown_name_lists_the_known_ones(monkeypatch):
    monkeypatch.setenv(fast.SWITCH, "kernel")
    with pytest.raises(ConfigError, match=r"MOE_MEGATRON_PLAIN \(kernel\) must be 1.*kernels, att"):
        fast.enabled("kernels")
