"""The first weights of a model are those of its seed, in every layout and with every batch."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_megatron.config import apply_overrides, load_config
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import MOCK_VOCAB_SIZE

pytestmark = pytest.mark.distributed

SHAPE: dict[str, Any] = {
    "model.num_layers": 4,
    "model.tie_embeddings": True,
    "model.init_std": 0.05,
    "training.train_steps": 1,
    "training.warmup_steps": 0,
    "training.precision": "fp32",
    "training.eval_interval": None,
    "checkpoint.save_interval": None,
    "telemetry.history": False,
    # One row of the vocabulary more is padded to 128 in one process and to 256 in two.
    "training.global_batch_size": 2,
}
BF16 = {"training.precision": "bf16"}
ONE: dict[str, dict[str, Any]] = {
    "one": {},
    "one_bf16": BF16,
    "batch": {"training.micro_batch_size": 2, "data.sequence_length": 32},
    "seed": {"training.seed": 7},
}
TWO: dict[str, dict[str, Any]] = {
    "ep2_bf16": {"parallel.expert_parallel_size": 2, **BF16},
    "tp2": {"parallel.tensor_parallel_size": 2},
    "ep2": {"parallel.expert_parallel_size": 2},
    "pp2": {"parallel.pipeline_parallel_size": 2},
    "vpp2": {"parallel.pipeline_parallel_size": 2, "parallel.virtual_pipeline_stages": 2},
}
SAME = ("one_bf16", "batch", *TWO)


def keep_first_weights(layouts: Mapping[str, Mapping[str, Any]], folder: Path) -> None:
    """Start a run of each layout, and keep the whole weights that it starts from."""
    from moe_megatron.mcore import world
    from moe_megatron.mcore.loop import engine
    from moe_megatron.mcore.state.weights import collect_weights
    from moe_megatron.run.machine import choose_machine

    for name, layout in layouts.items():
        config = apply_overrides(load_config("test_tiny"), {**SHAPE, **layout})

        def keep(chunks: list[Any], name: str = name, config: Any = config) -> list[Any]:
            weights = collect_weights(chunks, config.architecture)
            if world.rank() == 0:
                save_file(weights, folder / name)
            return chunks

        job = engine.TrainingJob(
            config=config,
            data_paths=(),
            data_cache=folder / "mock_data",
            vocab_size=MOCK_VOCAB_SIZE + 1,
            end_of_document=0,
            run_dir=folder / f"run_{name}",
            model_hooks=[keep],
        )
        engine.run(job, choose_machine(config).settings)
    world.leave()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("initial")
    run_distributed(keep_first_weights, ONE, folder, world_size=1)
    run_distributed(keep_first_weights, TWO, folder, world_size=2)
    return {name: load_file(folder / name) for name in (*ONE, *TWO)}


@pytest.mark.parametrize("layout", SAME)
def test_seed_gives_the_same_weights_in_every_layout_and_with_every_batch(
    layout: str, weights: dict[str, dict[str, torch.Tensor]]
) -> None:
    ours, one = weights[layout], weights["one"]
    assert ours.keys() == one.keys()
    if layout.endswith("bf16"):  # drawn in float32, and then rounded
        one = {name: it.bfloat16().float() for name, it in one.items()}
    assert [name for name in one if not torch.equal(ours[name], one[name])] == []


def test_no_two_matrices_are_equal_and_another_seed_gives_others(
    weights: dict[str, dict[str, torch.Tensor]],
) -> None:
    drawn = {name: it for name, it in weights["one"].items() if it.std() > 0}
    assert {"embed_tokens.weight", "layers.0.moe.router.weight"} <= drawn.keys()
    assert len({it.flatten()[:8].numpy().tobytes() for it in drawn.values()}) == len(drawn)
    assert [name for name in drawn if torch.equal(drawn[name], weights["seed"][name])] == []


def test_matrices_have_the_spread_that_is_configured(
    weights: dict[str, dict[str, torch.Tensor]],
) -> None:
    spread = {name: float(it.std()) for name, it in weights["one"].items()}
    inner = [spread[name] for name in spread if "q_proj" in name or "gate_proj" in name]
    outer = [spread[name] for name in spread if "o_proj" in name or "down_proj" in name]
    assert inner == pytest.approx([0.05] * len(inner), rel=0.1)
    assert outer == pytest.approx([0.05 / (2 * 4) ** 0.5] * len(outer), rel=0.1)
    assert spread["embed_tokens.weight"] == pytest.approx(0.05, rel=0.05)
