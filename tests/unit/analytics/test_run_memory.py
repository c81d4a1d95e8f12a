"""The memory of a run, from its configuration."""

from typing import Any

import pytest

from moe_megatron.analytics.run_memory import RunMemory, run_memory
from moe_megatron.config import apply_overrides, load_config

MILLION = 1e6


def needed(world_size: int = 1, precision: str = "bf16", **changes: Any) -> RunMemory:
    overrides = {name.replace("__", "."): value for name, value in changes.items()}
    config = apply_overrides(load_config("demo_moe"), {"parallel.expert_parallel_size": 1})
    return run_memory(
        apply_overrides(config, overrides), precision=precision, world_size=world_size
    )


def test_every_parameter_is_stored_once_in_each_type() -> None:
    parameters = needed(checkpoint__save_optimizer=False).checkpoint / 2
    assert parameters == pytest.approx(10.9 * MILLION, rel=0.01)  # as the preset says
    assert needed().stored == 18 * parameters  # bf16 weights, gradients, master weights, moments
    assert needed(precision="fp32").stored == 16 * parameters
    assert needed().checkpoint == 14 * parameters
    assert needed(precision="fp32").checkpoint == 16 * parameters


@pytest.mark.parametrize(
    "layout",
    [
        {"parallel__tensor_parallel_size": 2},
        {"parallel__pipeline_parallel_size": 2},
        {"parallel__tensor_parallel_size": 2, "parallel__pipeline_parallel_size": 2},
    ],
)
def test_layouts_that_cut_the_model_store_it_once(layout: dict[str, Any]) -> None:
    processes = 2 ** len(layout)
    assert needed(processes, **layout).stored == pytest.approx(needed().stored)


def test_replicas_repeat_weights_and_gradients_but_shard_the_optimizer() -> None:
    parameters = needed().checkpoint / 14
    assert needed(2).stored - needed().stored == pytest.approx(6 * parameters)
    whole = needed(2, parallel__distributed_optimizer=False)
    assert whole.stored == 2 * needed().stored
    experts = needed(2, parallel__expert_parallel_size=2)
    assert needed().stored < experts.stored < needed(2).stored


def test_only_a_save_in_the_background_adds_to_training() -> None:
    now, later = needed(), needed(checkpoint__async_save=True)
    assert now.saving == now.resuming == now.training == now.peak
    assert later.training == now.training
    assert later.training + later.stored < later.saving < 2 * later.training
    assert later.peak == later.saving
    never = needed(checkpoint__async_save=True, checkpoint__save_interval=None)
    assert never.saving == never.training == now.training


def test_activations_grow_with_tokens_and_less_when_recomputed() -> None:
    long = needed(data__sequence_length=4096)
    again = needed(data__sequence_length=4096, training__recompute="full")
    assert long.training > 1.5 * needed().training
    assert needed().training < again.training < long.training


def test_a_machine_of_several_takes_its_part() -> None:
    config = load_config("demo_moe")
    whole = run_memory(config, precision="bf16", world_size=4)
    half = run_memory(config, precision="bf16", world_size=4, processes=2)
    assert 2 * half.training == pytest.approx(whole.training)


def test_what_is_frozen_is_weights_alone() -> None:
    parameters = needed().checkpoint / 14
    experts = 6 * 8 * 3 * 128 * 512
    tuned = needed(finetune__train=["experts"])
    assert tuned.stored == 2 * parameters + 16 * experts
    assert tuned.checkpoint == 2 * parameters + 12 * experts
    adapted = needed(adapter__rank=8, adapter__targets=["experts"])
    low_rank = 6 * 8 * 8 * ((128 + 2 * 512) + (512 + 128))
    assert adapted.stored == 2 * parameters + 18 * low_rank
    assert adapted.checkpoint == 2 * parameters + 14 * low_rank
    both = needed(adapter__rank=8, adapter__targets=["experts"], finetune__train=["experts"])
    assert both.stored == tuned.stored + 18 * low_rank
    assert adapted.training < tuned.training < needed().training
