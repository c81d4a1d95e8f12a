"""Adapters in PEFT's format: computed by the real library, and read back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from moe_megatron import MoEModel
from moe_megatron.adapters.base_hash import hash_of_folder
from moe_megatron.adapters.from_peft import from_peft
from moe_megatron.adapters.hf_layouts import HfLayouts, layouts_of_folder
from moe_megatron.adapters.low_rank import LowRank
from moe_megatron.adapters.merging import merge_into
from moe_megatron.adapters.peft_folder import read_folder, write_folder
from moe_megatron.adapters.to_peft import PeftAdapter, to_peft
from moe_megatron.config.parameter_roles import role_of
from moe_megatron.errors import MappingError
from moe_megatron.testing import tiny_models

QUICK = ("qwen2_moe", "gpt_oss")
# Of others MoEModel computes nothing to compare with.
LEFT_OUT = ("deepseek_v3-yarn", "kimi_k2", "gpt_oss-yarn", "qwen3")
UNTRAINED = ("switch_transformers", "qwen3_next", "qwen3_5", "deepseek_v32", "llama4")
DEEP = [
    pytest.param(name, marks=pytest.mark.deep)
    for name in tiny_models.EXAMPLES
    if name not in (*QUICK, *LEFT_OUT) and not name.startswith(UNTRAINED)
]


class Made:
    """A saved model of transformers, and ours with its weights."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder / "model"
        # Doubles, because errors of floats grow to more than 1e-5 within some of the models.
        self.theirs = tiny_models.save(name, self.folder, fused=False).double()
        self.theirs.set_experts_implementation("eager")  # others know no doubles
        self.ours = MoEModel.from_pretrained(self.folder).double()
        self.layouts: HfLayouts = layouts_of_folder(self.folder)

    def written(self, adapter: dict[str, LowRank]) -> PeftAdapter:
        return to_peft(adapter, self.layouts.fused, is_moe=self.layouts.family.is_moe)

    def save(self, adapter: dict[str, LowRank]) -> Path:
        folder = self.folder.with_name("adapter")
        write_folder(folder, self.written(adapter), hash_of_folder(self.folder))
        return folder

    @torch.no_grad()
    def logits(self, model: Any) -> Tensor:
        ids = torch.arange(24).view(2, 12) * 5 % 131
        logits: Tensor = model(ids).logits
        return logits


@pytest.mark.parametrize("name", [*QUICK, *DEEP])
def test_peft_computes_what_our_adapted_model_does(name, tmp_path, draw):
    made = Made(name, tmp_path)
    adapter = draw(made.layouts.fused)
    folder = made.save(adapter)
    before = made.logits(made.theirs)
    theirs = made.logits(PeftModel.from_pretrained(made.theirs, folder).eval())
    merge_into(made.ours, adapter)
    assert float((theirs - before).abs().max()) > 0.1
    torch.testing.assert_close(made.logits(made.ours), theirs, atol=1e-5, rtol=1e-5)
    read = read_folder(folder).fitted(made.layouts.both)
    assert read.keys() == adapter.keys()
    for place, low_rank in adapter.items():
        assert read[place].rank == low_rank.rank, place
        torch.testing.assert_close(read[place].delta(), low_rank.delta(), msg=place)


def test_experts_have_peft_axes(tmp_path, draw):
    """A in rows of an expert, B in columns of a rank: parameters are [experts, outputs, inputs].

    Read with the two axes exchanged, neither the shapes nor the merged parameter would fit.
    """
    made = Made("qwen3_moe", tmp_path)
    adapter = draw(made.layouts.fused, ["experts"])
    written = made.written(adapter)
    owner, experts, hidden, width = "base_model.model.model.layers.1.mlp.experts", 6, 48, 40
    a, b = (written.tensors[f"{owner}.base_layer.lora_{it}.weight"] for it in "AB")
    rank = len(a) // experts
    assert a.shape == (experts * rank, hidden)
    assert b.shape == (2 * width, rank * experts)
    assert written.tensors[f"{owner}.lora_A.weight"].shape[1] == width
    merged = PeftModel.from_pretrained(made.theirs, made.save(adapter)).merge_and_unload()
    parameter = dict(merged.named_parameters())["model.layers.1.mlp.experts.gate_up_proj"]
    base = dict(tiny_models.build("qwen3_moe").named_parameters())
    before = base["model.layers.1.mlp.experts.gate_up_proj"]
    for expert in range(experts):
        place = f"decoder.layers.1.mlp.experts.local_experts.{expert}.linear_fc1.weight"
        delta = (parameter[expert] - before[expert]).float()
        torch.testing.assert_close(delta, adapter[place].delta(), atol=1e-5, rtol=1e-4)


def test_queries_keys_and_values_of_their_own_come_back_as_one_matrix(tmp_path):
    made = Made("qwen3_moe", tmp_path)
    widths = {"q": 96, "k": 32, "v": 32}
    name = "base_model.model.model.layers.0.self_attn.{}_proj.lora_{}.weight"
    tensors = {}
    for number, (letter, width) in enumerate(widths.items()):
        generator = torch.Generator().manual_seed(number)
        tensors[name.format(letter, "A")] = torch.randn(2, 48, generator=generator)
        tensors[name.format(letter, "B")] = torch.randn(width, 2, generator=generator)
    targets = [f"{letter}_proj" for letter in widths]
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": targets}
    (low_rank,) = from_peft(config, tensors, made.layouts.both).values()
    assert low_rank.rank == 6
    delta = {
        letter: 1.5 * tensors[name.format(letter, "B")] @ tensors[name.format(letter, "A")]
        for letter in widths
    }
    rows, per_group = [], 96 // 2  # two groups, of three query heads of width 16
    for group in range(2):
        rows.append(delta["q"][group * per_group : (group + 1) * per_group])
        rows += [delta[letter][group * 16 : (group + 1) * 16] for letter in "kv"]
    torch.testing.assert_close(low_rank.delta(), torch.cat(rows))


def test_experts_by_themselves_are_read_as_transformers_4_has_them(tmp_path):
    made = Made("olmoe", tmp_path)
    name = "base_model.model.model.layers.1.mlp.experts.5.{}_proj.lora_{}.weight"
    generator = torch.Generator().manual_seed(0)
    tensors = {
        name.format(matrix, part): torch.randn(*shape, generator=generator)
        for matrix, width in (("gate", 56), ("up", 56))
        for part, shape in (("A", (2, 48)), ("B", (width, 2)))
    }
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "use_rslora": True}
    read = from_peft(config, tensors, made.layouts.both)
    assert list(read) == ["decoder.layers.1.mlp.experts.local_experts.5.linear_fc1.weight"]
    deltas = [
        2**0.5 * tensors[name.format(it, "B")] @ tensors[name.format(it, "A")]
        for it in ("gate", "up")
    ]
    torch.testing.assert_close(next(iter(read.values())).delta(), torch.cat(deltas))


def test_magnitudes_of_attention_are_peft_dora(tmp_path, draw):
    made = Made("qwen3_moe", tmp_path)
    adapter = draw(made.layouts.fused, ["attention"], magnitudes=True)
    folder = made.save(adapter)
    theirs = made.logits(PeftModel.from_pretrained(made.theirs, folder).eval())
    merge_into(made.ours, adapter)
    torch.testing.assert_close(made.logits(made.ours), theirs, atol=1e-5, rtol=1e-5)
    read = read_folder(folder).fitted(made.layouts.both)
    for place, low_rank in adapter.items():
        assert torch.equal(read[place].magnitude, low_rank.magnitude)


def test_magnitudes_that_peft_does_not_know_are_refused(tmp_path, draw):
    made = Made("qwen2_moe", tmp_path)
    of_experts = draw(made.layouts.fused, ["experts"], magnitudes=True)
    with pytest.raises(MappingError, match=r"experts.* has magnitudes .*merge the adapter instead"):
        made.written(of_experts)
    of_attention = draw(made.layouts.fused, ["attention"], magnitudes=True)
    others = draw(made.layouts.fused, ["shared_experts"])
    with pytest.raises(MappingError, match="to all targets or to none; merge"):
        made.written(of_attention | others)


def test_a_uniform_adapter_needs_no_patterns_and_names_each_target_once(tmp_path, draw):
    made = Made("qwen3_moe", tmp_path)
    adapter = draw(made.layouts.fused, ["attention"], equal=True)
    config = made.written(adapter).config
    assert config["target_modules"] == [f"self_attn.{it}_proj" for it in "koqv"]
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    one_layer = {place: it for place, it in adapter.items() if ".layers.1." in place}
    config = made.written(one_layer).config
    assert config["target_modules"] == [f"model.layers.1.self_attn.{it}_proj" for it in "koqv"]
    assert all(role_of(place) == "attention" for place in adapter)
