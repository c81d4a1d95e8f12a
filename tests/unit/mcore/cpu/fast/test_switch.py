"""One switch turns accelerators off, all or by name.

Two ranks run a training step for every value of the switch and count how often each accelerator is
entered. Losses would not show it: an accelerator computes the same as what it replaces.
"""

import os
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.errors import ConfigError
from moe_megatron.mcore.cpu import fast
from moe_megatron.mcore.cpu.fast.kernels import routing, rows, swiglu, weighing
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import Job, run_on_this_rank

FAST, EMULATION = fast.__name__, "moe_megatron.mcore.cpu.emulation"
ENTRIES: dict[str, dict[str, str]] = {
    "kernels": {
        f"{FAST}.kernels.{name}": "call" for name in ("routing", "rows", "swiglu", "weighing")
    },
    "attention": {f"{FAST}.causal_attention:CausalAttention": "apply"},
    "rotary": {f"{FAST}.rotary:Rotation": "apply"},
    "experts": {f"{FAST}.swiglu_experts:SwiGluExperts": "apply"},
    "losses": {f"{FAST}.cross_entropy:TokenLosses": "apply"},
    "shared_memory": {f"{FAST}.shared_memory:Channel": "exchange"},
    "reduce_scatter": {f"{EMULATION}.gloo": "_add_parts"},
    "optimizer": {"torch": "_fused_adamw_"},
}
"""Where a run enters each accelerator: modules or classes, and the name of a function in them."""

WITHOUT_ENTRY = {"allocator": "acts once, before ranks are forked; test_memory.py measures it"}
MODULES_WITHOUT_ENTRY = {
    f"{FAST}.memory": "the allocator",
    f"{FAST}.moe_functions": "computes nothing itself, but calls routing and rows",
    f"{FAST}.falling_back": "computes nothing itself",
    f"{FAST}.kernels.compiled": "is called by the kernels",
}

SWITCHES = ("1", "shared_memory", *sorted(ENTRIES.keys() - {"shared_memory"}), "")
"""A group of ranks connects once, so the values that allow shared memory come last."""
OVERRIDES = {
    "parallel.expert_parallel_size": 2,
    "training.precision": "bf16",  # swiglu and weighing have no kernel for fp32
    "training.train_steps": 1,
    "training.warmup_steps": 0,
}


def count_calls(folder: Path) -> dict[str, dict[str, int]]:
    """Calls of every entry on this rank, in one run for each value of the switch."""
    calls: dict[str, int] = {}
    for entries in ENTRIES.values():
        for owner, name in entries.items():
            count_into(calls, owner, name)
    found = {}

    def jobs() -> Iterator[Job]:
        for switch in SWITCHES:
            os.environ[fast.SWITCH] = switch
            calls.update(dict.fromkeys(calls, 0))
            yield Job(run_dir=folder / f"without_{switch}", overrides=OVERRIDES)
            found[switch] = dict(calls)

    run_on_this_rank(jobs())
    return found


def count_into(calls: dict[str, int], owner: str, name: str) -> None:
    place = pkgutil.resolve_name(owner)
    original = getattr(place, name)
    calls[owner] = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[owner] += 1
        return original(*args, **kwargs)

    setattr(place, name, counted)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, int]]]:
    """Calls counted by each of two ranks."""
    if routing._compiled() is None:
        pytest.skip("no C compiler on this machine")
    return run_distributed(count_calls, tmp_path_factory.mktemp("runs"))


@pytest.mark.deep
@pytest.mark.distributed
def test_run_without_the_switch_enters_every_accelerator(answers):
    for answer in answers:
        assert [entry for entry, count in answer[""].items() if not count] == []


@pytest.mark.deep
@pytest.mark.distributed
@pytest.mark.parametrize("switch", [value for value in SWITCHES if value])
def test_run_enters_no_accelerator_that_is_switched_off_and_all_others(switch, answers):
    off = set(ENTRIES) if switch == "1" else {switch}
    for answer in answers:
        unused = {
            n for n, entries in ENTRIES.items() if not any(answer[switch][e] for e in entries)
        }
        assert unused == off


def test_every_accelerator_and_every_module_has_an_entry():
    assert ENTRIES.keys() | WITHOUT_ENTRY.keys() == fast.ACCELERATORS.keys()
    modules = {m.name for m in pkgutil.walk_packages(fast.__path__, f"{FAST}.") if not m.ispkg}
    entered = {owner.partition(":")[0] for entries in ENTRIES.values() for owner in entries}
    assert modules - entered == MODULES_WITHOUT_ENTRY.keys()


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
