"""`FineTuner` tunes a model in memory, and leaves the rest of it as it is, bit by bit."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron.config import load_config
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.text.loading import load_tokenizer

pytestmark = pytest.mark.distributed

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_experts": 4,
    "experts_per_token": 2,
    "vocab_size": 300,
}


def tune(texts: list[str], tokenizer: Path, folder: Path, precision: str) -> dict[str, set[str]]:
    """On a rank: three ways to tune one model; the names of weights that each has moved."""
    from moe_megatron import FineTuner, MoEModel
    from moe_megatron.mcore import world

    torch.manual_seed(0)
    first = MoEModel(**SIZES)
    before = {name: value.clone() for name, value in first.state_dict().items()}
    common: dict[str, Any] = {
        "tokenizer": load_tokenizer(str(tokenizer)),
        "run_dir": folder,
        "overrides": {"training.precision": precision, "telemetry.console": False},
    }
    how = {"batch_size": 4, "learning_rate": 1e-2, "max_steps": 2, "sequence_length": 16}
    moved = {}
    for name in ("no experts", "routers", "used"):
        model = copy.deepcopy(first)
        if name == "no experts":
            tuner = FineTuner(model, freeze_experts=True, router_learning_rate="0.1x", **common)
        elif name == "routers":
            tuner = FineTuner(model, train=["router"], **common)
        else:
            tuner = FineTuner(model, freeze_experts={1: [0, 1, 2, 3]}, **common)
            chosen = tuner.train_used_experts(texts, 0.5, num_sequences=4)
            assert [it.layer for it in chosen] == [1, 2]
            assert all(0.5 <= it.share < 1 for it in chosen)
            used = {f"layers.1.moe.experts.{it}." for it in chosen[1].experts}
        result = tuner.train(texts, task="text_generation", num_epochs=1, **how)
        assert len(result.losses) == 2
        after = model.state_dict()
        moved[name] = {key for key, value in before.items() if not torch.equal(value, after[key])}
    found = {next(start for start in used if name.startswith(start)) for name in moved["used"]}
    assert found == used
    world.leave()
    return moved


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.deep), "bf16"])
def test_what_is_not_tuned_stays(
    precision: str, corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    texts = corpus.read_text().splitlines()[:40]
    (moved,) = run_distributed(tune, texts, tokenizer, tmp_path, precision, world_size=1)
    assert all(".router." in name for name in moved["routers"])
    assert len(moved["routers"]) == 2
    assert not any(".experts." in name for name in moved["no experts"])
    assert any("attention" in name or "attn" in name for name in moved["no experts"])
    assert moved["no experts"] >= moved["routers"]


def unfreeze(texts: list[str], tokenizer: Path, folder: Path) -> tuple[set[str], list[int]]:
    """On a rank: routers, from step 2 on attention, from 4 on norms; what moved, and the steps."""
    from moe_megatron import FineTuner, MoEModel
    from moe_megatron.mcore import world

    torch.manual_seed(0)
    model = MoEModel(**SIZES)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tuner = FineTuner(
        model,
        train=["router"],
        tokenizer=load_tokenizer(str(tokenizer)),
        run_dir=folder / "tuner",
        overrides={"training.precision": "fp32", "telemetry.console": False},
    )
    how: dict[str, Any] = {"batch_size": 4, "learning_rate": 1e-2, "sequence_length": 16}
    result = tuner.train(texts, max_steps=5, unfreeze=["2:attention", "4:norms"], **how)
    assert result.steps == 5
    after = model.state_dict()
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    world.leave()
    return moved, [it.step for it in tuner.history.steps]


def test_more_is_trained_from_a_step_on(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    texts = corpus.read_text().splitlines()[:40]
    (moved, steps), (same, _) = run_distributed(unfreeze, texts, tokenizer, tmp_path, world_size=2)
    assert steps == [1, 2, 3, 4, 5]
    assert moved == same
    assert not any(".experts." in name for name in moved)
    assert all(any(part in name for name in moved) for part in ("router", "attention", "norm"))
    runs = {it.parent.name: load_config(it) for it in tmp_path.glob("tuner*/config.yaml")}
    assert {name: set(it.finetune.train) for name, it in runs.items()} == {
        "tuner-to-step-2": {"router"},
        "tuner-to-step-4": {"router", "attention"},
        "tuner": {"router", "attention", "norms"},
    }
