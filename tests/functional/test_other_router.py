"""A new run starts from weights that another router was trained with, and says so."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_megatron.cli import pretrain
from moe_megatron.config import CONFIG_FILE, load_config
from moe_megatron.errors import EXIT_CODE
from moe_megatron.testing.distributed import run_distributed
from moe_megatron.testing.jobs import step_records

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600), pytest.mark.deep]

SHORT = "--mock-data --train-iters 3 --save-interval 3 --set training.warmup_steps=0"
OWN = """
import torch
from moe_megatron.routing import Routing

def likewise(logits, *, top_k):
    weights, indices = torch.sigmoid(logits.float()).topk(top_k)
    weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
    return Routing.of_indices(indices, weights.to(logits.dtype), logits.shape[-1])
"""
TRAINED = "top_k (score_function sigmoid)"
ANEW = "routes from here on, and what it remembers starts anew"


def words(text: str) -> list[str]:
    return f"{text} {SHORT}".split()


def losses(run: Path) -> list[float]:
    return [it.loss for it in step_records(run)]


def several(lines: list[str]) -> list[tuple[int, str]]:
    """On a rank: run the command lines one after another; exit codes, and what was said."""
    import contextlib
    import io

    from moe_megatron.mcore import world

    found = []
    for line in lines:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = pretrain.main(words(line))
        found.append((code, said.getvalue()))
    world.leave()
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Runs from the same weights: exit code, output and folder by name."""
    folder = tmp_path_factory.mktemp("rerouted")
    (folder / "own.py").write_text(OWN)
    base = folder / "base" / "checkpoints"
    start = f"--config {base / 'iter_0000003' / CONFIG_FILE} --load {base}"
    lines = {
        "base": "--config test_tiny --router top_k --router-arg score_function=sigmoid "
        "--router-arg pre_softmax=false",
        "alike": f"{start} --finetune",
        "loss_free": f"{start} --finetune --router loss_free --router-arg update_rate=8",
        "own": f"{start} --finetune --router {folder / 'own.py'}:likewise",
        "bias": f"{start} --finetune --set moe.expert_bias=true",
        "unsaid": f"{start} --router loss_free",
        "cosine": f"{start} --finetune --router cosine",
        "anew": f"--config {folder / 'loss_free' / CONFIG_FILE} --finetune "
        f"--load {folder / 'loss_free' / 'checkpoints'} --router-arg update_rate=0.25",
    }
    named = [f"{line} --run-dir {folder / name}" for name, line in lines.items()]
    (found,) = run_distributed(several, named, world_size=1)
    return {
        name: (code, said, folder / name) for name, (code, said) in zip(lines, found, strict=True)
    }


@pytest.mark.parametrize("name", ["loss_free", "own", "bias"])
def test_first_loss_is_that_of_the_weights(name: str, runs: dict[str, Any]) -> None:
    code, said, folder = runs[name]
    assert code == 0, said
    alike = losses(runs["alike"][2])
    found = losses(folder)
    assert len(found) == 3
    assert np.isfinite(found).all()
    assert found[0] == pytest.approx(alike[0], abs=1e-4)
    assert found[0] != pytest.approx(losses(runs["base"][2])[0], abs=1e-4)


def test_a_line_says_who_routes(runs: dict[str, Any]) -> None:
    trained = f"router: the weights were trained with {TRAINED}; "
    assert f"{trained}loss_free (update_rate 8.0) {ANEW}" in runs["loss_free"][1]
    assert re.search(
        rf"{re.escape(trained)}own\.py:likewise \(sha256 [0-9a-f]{{12}}\) routes", runs["own"][1]
    )
    assert "router: the weights" not in runs["alike"][1]


def test_what_was_remembered_starts_anew(runs: dict[str, Any]) -> None:
    """After an odd number of steps of 8 a bias is not 0; then it has moved three of 0.25."""
    from moe_megatron import MoEModel

    def largest(name: str) -> float:
        model = MoEModel.from_pretrained(runs[name][2] / "checkpoints")
        return max(float(it.abs().max()) for n, it in model.named_buffers() if "bias" in n)

    assert runs["anew"][0] == 0, runs["anew"][1]
    assert (
        "with loss_free (update_rate 8.0); loss_free (update_rate 0.25) routes" in runs["anew"][1]
    )
    assert largest("loss_free") >= 8
    assert 0 < largest("anew") <= 0.75
    router = load_config(runs["anew"][2] / CONFIG_FILE).moe.router
    assert router.options == {"update_rate": 0.25}


def test_without_finetune_the_way_is_named(runs: dict[str, Any]) -> None:
    code, said, _ = runs["unsaid"]
    assert code == EXIT_CODE
    assert "moe.router.name is top_k there and loss_free here" in said
    assert "give --finetune and another --run-dir" in said


def test_gate_with_other_tensors_is_refused(runs: dict[str, Any]) -> None:
    code, said, _ = runs["cosine"]
    assert code == EXIT_CODE
    line = next(it for it in said.splitlines() if it.startswith("error: "))
    assert f"was trained with the router {TRAINED}, whose gate has weight [4, 64]; that of" in line
    assert "temperature [1]" in line
