"""Every family computes in Megatron what it computes in transformers, or says why it does not.

The Megatron side is read from the converted checkpoint, under the keys that Megatron asks for.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron.checkpoint.convert import Execution, import_checkpoint
from moe_megatron.checkpoint.formats import description
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.checkpoint.formats.torch_dist import TorchDist
from moe_megatron.checkpoint.verify.hf_layers import layered_hf_model
from moe_megatron.checkpoint.verify.logits import (
    TOLERANCE,
    LogitsReport,
    compare_logits,
    random_tokens,
)
from moe_megatron.errors import BackendUnavailableError
from moe_megatron.families import FAMILIES, family_of
from moe_megatron.testing import tiny_models
from tests.examples import FEW, FIRST, deep_but

SEQUENCES, LENGTH = 2, 40
UNTRAINED = {
    name for name, (family, _) in tiny_models.EXAMPLES.items() if FAMILIES[family].untrained
}
ENCODER_DECODER = {"switch_transformers", "switch_transformers-untied"}
COMPUTED = sorted(tiny_models.EXAMPLES.keys() - ENCODER_DECODER - UNTRAINED)

Convert = Callable[[str], Path]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Convert:
    """A function that gives the folder with `hf` and `megatron` of an example."""

    @cache
    def convert(name: str) -> Path:
        folder = tmp_path_factory.mktemp("parity")
        tiny_models.save(name, folder / "hf", fused=False)
        import_checkpoint(folder / "hf", folder / "megatron", execution=Execution(progress=False))
        return folder

    return convert


def compared(folder: Path, precision: str = "fp32") -> LogitsReport:
    there = HfFolder(folder / "hf")
    family = family_of(there.config)
    geometry = family.geometry(there.config, there.tensors)
    links = family.links(geometry, fused=family.has_fused_names(there.tensors))
    tokens = random_tokens(geometry.vocab, SEQUENCES, LENGTH)
    with TorchDist(folder / "megatron") as saved:
        run = description.run_of(saved.path)
        return compare_logits(there, links, saved, run, tokens=tokens, precision=precision)


@pytest.mark.parametrize("name", deep_but(FIRST, COMPUTED))
def test_logits_of_the_checkpoint_are_those_of_transformers(name: str, converted: Convert) -> None:
    config = HfFolder(converted(name) / "hf").config
    assert family_of(config).limits(config) == ()
    report = compared(converted(name))
    assert report.positions == SEQUENCES * LENGTH
    assert report.spread > 0.5  # or agreement would mean little
    assert report.max_difference < TOLERANCE
    assert report.top1_agreement == 1.0


@pytest.mark.parametrize("name", deep_but(FEW, COMPUTED))
def test_bf16_differs_by_rounding_alone(name: str, converted: Convert) -> None:
    report = compared(converted(name), "bf16")
    # Another function is off by half of the spread; rounding may send a token to another expert.
    assert 0 < report.mean_difference < 0.15 * report.spread
    assert report.top1_agreement > 0.75


@pytest.mark.parametrize(("largest", "differs"), [(0.05, True), (1e6, False)])
def test_what_megatron_computes_differently_is_said_and_true(
    largest: float, differs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, sizes = tiny_models.EXAMPLES["olmoe"]
    monkeypatch.setitem(tiny_models.EXAMPLES, "olmoe", (family, {**sizes, "clip_qkv": largest}))
    tiny_models.save("olmoe", tmp_path / "hf", fused=False)
    import_checkpoint(tmp_path / "hf", tmp_path / "megatron", execution=Execution(progress=False))
    config = HfFolder(tmp_path / "hf").config
    (limit,) = family_of(config).limits(config)
    assert "does not clip queries, keys and values" in limit
    # A bound that nothing reaches makes no difference.
    assert (compared(tmp_path).max_difference > 0.1) == differs


@pytest.mark.parametrize("name", sorted(ENCODER_DECODER))
def test_an_encoder_decoder_has_no_logits_to_compare(name: str, converted: Convert) -> None:
    config = HfFolder(converted(name) / "hf").config
    assert "Only the decoder runs in Megatron" in family_of(config).limits(config)[0]
    with pytest.raises(BackendUnavailableError, match="no logits that both compute"):
        compared(converted(name))
    with TorchDist(converted(name) / "megatron") as saved:
        # Without rotary positions too: Megatron refuses to load a checkpoint that says otherwise.
        assert saved.common_state()["args"].get("add_position_embedding") is True


@pytest.mark.parametrize("name", ["mixtral-tied", "deepseek_v3", "gpt_oss", "phimoe"])
@pytest.mark.parametrize("fused", [False, True], ids=["classic", "fused"])
def test_a_model_in_layers_is_the_model_of_transformers(
    name: str, fused: bool, tmp_path: Path
) -> None:
    model: Any = tiny_models.save(name, tmp_path, fused=fused)
    folder = HfFolder(tmp_path)
    family = family_of(folder.config)
    geometry = family.geometry(folder.config, folder.tensors)
    tokens = random_tokens(geometry.vocab, SEQUENCES, LENGTH)
    with torch.no_grad():
        expected = model(tokens).logits
    with layered_hf_model(folder, family.links(geometry, fused=fused)) as layered:
        torch.testing.assert_close(layered(tokens), expected, atol=2e-5, rtol=0)
        torch.testing.assert_close(layered(tokens), expected, atol=2e-5, rtol=0)
