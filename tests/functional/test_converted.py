"""Converted checkpoints under Megatron's own loader: any layout, training on, and the way back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.cli import pretrain
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import step_records
from tests.functional import ladder

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

# Latent attention, groups of experts and dense first layers in an uneven pipeline; half rotated
# heads and shared experts; norms over all heads; single biases, a choice of experts of its own and
# multipliers; experts with biases; words that no number of ranks divides. The cards in
# docs/verification have every family in every layout.
CASES: list[ladder.Case] = [
    *(("tp2", name) for name in ("deepseek_v3", "mixtral", "olmoe", "phimoe")),
    *(("ep2", name) for name in ("deepseek_v3", "glm4_moe", "gpt_oss")),
    *(("pp2", name) for name in ("deepseek_v3", "mixtral-tied", "granitemoe")),
    ("tp2_ep2", "deepseek_v3"),
]
DEEP = {
    *(("tp2", "mixtral"), ("tp2", "olmoe"), ("ep2", "deepseek_v3"), ("pp2", "granitemoe")),
    ("ep2", "glm4_moe"),
    *(("tp2", "phimoe"), ("tp2_ep2", "deepseek_v3")),
}
"""Of which others show the same."""
PLAIN = (ladder.TRAINING, "mixtral")
PARAMETERS = [
    pytest.param(case, id="-".join(case), marks=pytest.mark.deep if case in DEEP else ())
    for case in CASES
]


# --- layouts -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, chosen: Callable[[str], list[Any]]) -> Path:
    """Converted examples, and what transformers computes with them."""
    folder = tmp_path_factory.mktemp("converted")
    ladder.prepare(folder, [name for _, name in (*chosen("case"), PLAIN)])
    return folder


@pytest.fixture(scope="module")
def answers(place: Path, chosen: Callable[[str], list[Any]]) -> dict[ladder.Case, Any]:
    """Largest difference of logits, or losses, of each case."""
    return ladder.measure(place, [*chosen("case"), PLAIN])


@pytest.mark.parametrize("case", PARAMETERS)
def test_every_layout_computes_what_transformers_computes(
    case: ladder.Case, answers: dict[ladder.Case, Any]
) -> None:
    assert answers[case] < 1e-4


@pytest.mark.parametrize("case", PARAMETERS)
def test_what_any_layout_saves_returns_bit_by_bit(
    case: ladder.Case, place: Path, answers: dict[ladder.Case, Any], tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    from moe_megatron.checkpoint.convert import Execution, export_checkpoint

    checkpoints = ladder.saved(place, case)
    export_checkpoint(checkpoints, tmp_path / "back", execution=Execution(progress=False))
    before, after = (
        {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}
        for folder in (place / case[1] / "hf", tmp_path / "back")
    )
    assert before.keys() == after.keys()
    assert [k for k, v in before.items() if not v.equal(after[k])] == []


def test_loss_of_a_plain_model_falls(answers: dict[ladder.Case, Any]) -> None:
    losses = answers[PLAIN]
    assert len(losses) == ladder.STEPS
    assert losses == sorted(losses, reverse=True)
    assert losses[0] - losses[-1] > 0.1


# --- training on ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
    tokenizer: Path,
    corpus: Path,
    cache: Path,
) -> Path:
    """Folder of a model with dense layers and 384 words, which trained 3 steps and, resumed, 1."""
    from moe_megatron.checkpoint.convert import Execution, import_checkpoint
    from moe_megatron.testing import tiny_models

    folder = tmp_path_factory.mktemp("trained")
    family, sizes = tiny_models.EXAMPLES["glm4_moe"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tiny_models.EXAMPLES, "trained", (family, {**sizes, "vocab_size": 384}))
        tiny_models.save("trained", folder / "hf", fused=False)
    import_checkpoint(folder / "hf", folder / "megatron", execution=Execution(progress=False))
    fields = {
        "data.paths": [str(corpus)],
        "data.tokenizer": str(tokenizer),
        "data.sequence_length": 32,
        "data.split": "100,0,0",
        "training.micro_batch_size": 4,
        "training.global_batch_size": 8,
        "training.learning_rate": 5e-3,
        "training.warmup_steps": 0,
        "training.eval_interval": None,
        "checkpoint.save_interval": ladder.STEPS,
        **ladder.EP2,
    }
    words = [word for k, v in fields.items() for word in ("--set", f"{k}={json.dumps(v)}")]
    shared = ["--run-dir", "run", *words]
    given = {"directory": folder, "environment": {"MOE_MEGATRON_CACHE": str(cache)}}
    first = [
        *(*shared, "--load", "megatron"),
        *("--config", "megatron/release/config.yaml"),
        *("--set", f"training.train_steps={ladder.STEPS}"),
    ]
    resumed = [
        *(*shared, "--load", "run/checkpoints"),
        *("--config", "run/checkpoints/iter_0000003/config.yaml"),
        *("--set", f"training.train_steps={ladder.STEPS + 1}"),
    ]
    for line in (first, resumed):
        assert run_distributed(pretrain.main, line, **given) == [0, 0]
    return folder


def test_loss_falls_from_that_of_the_model_and_training_resumes(trained: Path) -> None:

    losses = {r.step: r.loss for r in step_records(trained / "run")}
    assert sorted(losses) == [1, 2, 3, 4]
    assert losses[1] > losses[2] > losses[3] > losses[4]


def test_the_trained_model_returns_to_transformers(trained: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from moe_megatron.checkpoint.convert import Execution, export_checkpoint
    from moe_megatron.checkpoint.verify.verification import Options, verify

    back = trained / "back"
    export_checkpoint(trained / "run" / "checkpoints", back, execution=Execution(progress=False))
    before = AutoModelForCausalLM.from_pretrained(trained / "hf")
    after = AutoModelForCausalLM.from_pretrained(back)
    assert type(after) is type(before)
    assert after.config.vocab_size == 384
    moved = {
        name
        for name, value in before.state_dict().items()
        if not torch.equal(value, after.state_dict()[name])
    }
    assert moved == set(before.state_dict())  # the correction biases of the choice too
    assert verify(trained / "run" / "checkpoints", back, Options(progress=False)).passed
