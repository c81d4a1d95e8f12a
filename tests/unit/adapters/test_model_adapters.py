"""Adapters side by side on one model: what each computes, and the base without any."""

from pathlib import Path

import pytest
import torch

from moe_megatron import MoEModel, models
from moe_megatron.adapters.base_hash import hash_of_model
from moe_megatron.adapters.hf_layouts import layouts_of_model
from moe_megatron.adapters.merging import merge_into
from moe_megatron.adapters.model_adapters import ModelAdapters
from moe_megatron.adapters.peft_folder import write_folder
from moe_megatron.adapters.pieces import Pieces
from moe_megatron.adapters.to_peft import to_peft
from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.model.links import links_of
from moe_megatron.testing import tiny_models

IDS = torch.arange(24).view(2, 12) * 5 % 131


@pytest.fixture
def model(tmp_path: Path) -> MoEModel:
    tiny_models.save("qwen3_moe", tmp_path / "model", fused=False)
    return MoEModel.from_pretrained(tmp_path / "model")


def pieces_of(model: MoEModel) -> Pieces:
    return Pieces(links_of(model.architecture))


@torch.no_grad()
def test_each_adapter_computes_what_merging_it_would(model, tmp_path, draw):
    drawn = {"one": draw(pieces_of(model)), "two": draw(pieces_of(model), ["experts"], seed=2)}
    drawn["norms"] = draw(pieces_of(model), seed=3, magnitudes=True)
    adapters, base = ModelAdapters(model), model(IDS).logits
    for name, adapter in drawn.items():
        adapters.add(name, adapter)
    assert torch.equal(model(IDS).logits, base)
    expected = {None: base}
    for name, adapter in drawn.items():
        merged = MoEModel.from_pretrained(tmp_path / "model")
        merge_into(merged, adapter)
        expected[name] = merged(IDS).logits
        with adapters.using(name) as adapted:
            torch.testing.assert_close(adapted(IDS).logits, expected[name], atol=1e-5, rtol=1e-5)
            assert torch.equal(adapted.generate(IDS, 5), merged.generate(IDS, 5))
            with adapters.using(None):
                assert torch.equal(model(IDS).logits, base)
        assert torch.equal(model(IDS).logits, base)
    mixed = adapters.logits(torch.cat((IDS, IDS)), ["two", None, "one", "two"])
    for row, name in enumerate(["two", None, "one", "two"]):
        torch.testing.assert_close(mixed[row], expected[name][row % 2], atol=2e-5, rtol=1e-4)
    adapters.remove("one")
    assert adapters.names == ("two", "norms")
    assert model.state_dict().keys() == merged.state_dict().keys()


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("olmoe", models.OLMoE),
        pytest.param("mixtral", models.Mixtral, marks=pytest.mark.deep),
        pytest.param("qwen3_moe", models.Qwen3MoE, marks=pytest.mark.deep),
    ],
)
def test_a_folder_is_added_to_a_model_of_its_family(name, kind, tmp_path, draw):
    tiny_models.save(name, tmp_path / "model", fused=True)
    model = kind.from_pretrained(tmp_path / "model")
    layouts = layouts_of_model(model.architecture)
    adapter = draw(layouts.fused, equal=True)
    folder = tmp_path / "adapter"
    write_folder(folder, to_peft(adapter, layouts.fused, is_moe=True), hash_of_model(model))
    adapters = ModelAdapters(model)
    adapters.add("folder", folder)
    adapters.add("data", adapter)
    with adapters.using("data"):
        expected = model(IDS).logits
    with adapters.using("folder"):
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-5)
    assert float((expected - model(IDS).logits).abs().max()) > 0.1


def test_names_are_checked(model, draw):
    adapters = ModelAdapters(model)
    with pytest.raises(ConfigError, match=r"no adapter 'law'.* Known are: none yet"):
        adapters.remove("law")
    adapters.add("law", draw(pieces_of(model), ["attention"]))
    with pytest.raises(ConfigError, match="an adapter 'law' already; choose another name"):
        adapters.add("law", draw(pieces_of(model), ["attention"]))
    with (
        pytest.raises(ConfigError, match=r"no adapter 'lav'\. Did you mean 'law'\? Known are: law"),
        adapters.using("lav"),
    ):
        pass
    with pytest.raises(ConfigError, match="1 adapters are named for 2 sequences"):
        adapters.logits(IDS, ["law"])


def test_adapters_that_do_not_fit_change_nothing(model, tmp_path, draw):
    adapters = ModelAdapters(model)
    layouts = layouts_of_model(model.architecture)
    written = to_peft(draw(layouts.fused), layouts.fused, is_moe=True)
    write_folder(tmp_path / "adapter", written, "sha256:of another")
    with pytest.raises(CheckpointError, match="trained on another base"):
        adapters.add("other", tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=r"holds no adapter_config\.json"):
        adapters.add("nothing", tmp_path / "model")
    with pytest.raises(ConfigError, match=r"router.* is no linear layer of this model; merge it"):
        adapters.add("router", draw(pieces_of(model), ["router"]))
    with pytest.raises(ConfigError, match="ModelAdapters needs a MoEModel"):
        ModelAdapters("model")
    assert adapters.names == ()
    assert not any(it._forward_hooks for it in model.modules())
