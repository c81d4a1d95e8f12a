"""Tensors that a conversion leaves out are proved redundant, byte by byte, or refused by name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from moe_megatron import MoEModel
from moe_megatron.checkpoint.convert import Execution, import_checkpoint
from moe_megatron.checkpoint.inspection import inspect_checkpoint
from moe_megatron.checkpoint.verify.verification import Options, verify
from moe_megatron.errors import MappingError
from moe_megatron.testing.tiny_models import save

DRY = Execution(progress=False, dry_run=True)
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BUFFER = "model.layers.0.self_attn.rotary_emb.inv_freq"


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    file = folder / "model.safetensors"
    weights = {name: value.clone() for name, value in load_file(file).items()}
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def checked(folder: Path) -> None:
    import_checkpoint(folder, folder.parent / "out", execution=DRY)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied") / "model"
    save("mixtral-tied", folder, fused=False)
    return folder


@pytest.fixture
def tied(saved: Path, tmp_path: Path) -> Path:
    """A model with tied embeddings that a test may change."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def with_bit_flipped(weights: dict[str, Tensor]) -> Tensor:
    head = weights[EMBEDDING].clone()
    head.view(torch.int32)[-1, -1] ^= 1
    return head


def test_output_projection_that_repeats_a_tied_embedding_is_left_out(tied: Path) -> None:
    rewrite(tied, lambda w: w.update({HEAD: w[EMBEDDING].clone()}))
    checked(tied)
    MoEModel.from_pretrained(tied)


@pytest.mark.parametrize(
    "head",
    [
        with_bit_flipped,
        lambda w: torch.zeros_like(w[EMBEDDING]),
        lambda w: w[EMBEDDING].bfloat16(),
        lambda w: w[EMBEDDING][:-1].clone(),
    ],
    ids=["a bit", "zeros", "another type", "another shape"],
)
def test_output_projection_that_differs_is_refused(
    head: Callable[[dict[str, Tensor]], Tensor], tied: Path, tmp_path: Path
) -> None:
    import_checkpoint(tied, tmp_path / "megatron", execution=Execution(progress=False))
    rewrite(tied, lambda w: w.update({HEAD: head(w)}))
    for use in (checked, MoEModel.from_pretrained):
        with pytest.raises(MappingError, match=r"lm_head\.weight differs from model\.embed_tok"):
            use(tied)
    # Another library takes the embedding and finds equal logits.
    found = verify(tied, tmp_path / "megatron", Options(logits=False, progress=False))
    assert not found.passed
    assert "lm_head.weight differs from model.embed_tokens.weight" in found.structure[0]
    assert inspect_checkpoint(tied).family == "mixtral"  # which reads no weights


def frequencies(base: float = 1e6, width: int = 12) -> Tensor:
    return 1.0 / base ** (torch.arange(0, width, 2, dtype=torch.int64).float() / width)


@pytest.mark.parametrize(
    ("buffer", "fits"),
    [
        (frequencies(), True),
        (frequencies().bfloat16(), True),
        (frequencies().half(), True),
        (frequencies().double(), True),
        (frequencies(base=1e4), False),
        (frequencies(width=10), False),
        (frequencies() * 1.01, False),
        (frequencies() * float("nan"), False),
        (frequencies().int(), False),
    ],
)
def test_rotary_buffer_is_compared_with_what_is_computed(
    buffer: Tensor, fits: bool, tied: Path
) -> None:
    rewrite(tied, lambda w: w.update({BUFFER: buffer}))
    if fits:
        checked(tied)
        return
    with pytest.raises(MappingError, match=r"inv_freq does not hold the rotary frequencies of"):
        checked(tied)


def test_rotary_buffer_of_stretched_positions_is_not_guessed(tmp_path: Path) -> None:
    save("qwen3", tmp_path / "model", fused=False)
    rewrite(tmp_path / "model", lambda w: w.update({BUFFER: frequencies()}))
    with pytest.raises(MappingError, match=r"holds .*inv_freq, for which this family has no"):
        checked(tmp_path / "model")


@pytest.mark.parametrize("same", [True, False])
def test_embeddings_of_both_sides_are_the_shared_one(same: bool, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save("switch_transformers", folder, fused=False)
    factor = 1.0 if same else 2.0
    name = "encoder.embed_tokens.weight"
    rewrite(folder, lambda w: w.update({name: w["shared.weight"] * factor}))
    config = json.loads((folder / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    if same:
        checked(folder)
        return
    with pytest.raises(MappingError, match=r"encoder\.embed_tokens\.weight differs from shared"):
        checked(folder)
