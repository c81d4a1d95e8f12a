"""Architectures by name: their options, their sizes, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron import architectures
from moe_megatron.architectures import (
    GPTOSS,
    CustomMoE,
    DeepSeekV3,
    GLaMMoE,
    MixtralModel,
    NamedArchitecture,
    OLMoE,
    SwitchTransformer,
)
from moe_megatron.config import list_presets, load_config
from moe_megatron.config.loader import list_tables
from moe_megatron.errors import ConfigError
from moe_megatron.experts import Expert, expert_names, kinds
from moe_megatron.routing import Routing, registry, router_names
from tests.unit.mistakes import assert_answered_in_python

ALL: list[type[NamedArchitecture]] = [
    found
    for name in architectures.__all__
    if isinstance(found := getattr(architectures, name), type)
    and issubclass(found, NamedArchitecture)
    and found is not NamedArchitecture
]


def is_computed(architecture: type[NamedArchitecture]) -> bool:
    """Whether `MoEModel` computes it, rather than Megatron alone."""
    try:
        architecture.of_size("tiny")
    except ConfigError:
        return False
    return True


COMPUTED = [it for it in ALL if "tiny" in it.sizes and is_computed(it)]


def test_the_smallest_size_is_put_where_one_asks() -> None:
    shapes, model = MixtralModel.tiny(device="meta"), MixtralModel.tiny()
    assert {it.device.type for it in shapes.parameters()} == {"meta"}
    assert {it.device.type for it in model.parameters()} == {"cpu"}
    assert shapes.num_parameters() == model.num_parameters()


def test_a_size_without_its_word_is_answered_with_the_name_of_the_class() -> None:
    with pytest.raises(ConfigError, match=r"^MixtralModel\(\.\.\.\): too many .* options, by name"):
        MixtralModel("8x7b")  # type: ignore[call-arg]


def test_switch_has_the_options_of_its_paper() -> None:
    model = SwitchTransformer(num_experts=4, expert_capacity_factor=1.5, jitter_noise=0.1)
    moe = model.moe_config
    assert (moe.num_experts, moe.top_k, moe.capacity_factor, moe.input_jitter) == (4, 1, 1.5, 0.1)
    assert moe.layer_frequency == (0, 1, 0, 1)
    assert SwitchTransformer.run_config(expert_capacity_factor=None).moe.capacity_factor is None


@pytest.mark.parametrize("normalized", [True, False])
def test_mixtral_normalizes_the_weights_of_a_token_or_not(normalized: bool) -> None:
    model = MixtralModel.tiny(num_experts=4, top_k=2, normalize_expert_weights=normalized)
    (weights_TK, *_) = [info.weights for info in model(torch.arange(8)[None]).routing]
    sums = weights_TK.sum(-1)
    assert torch.allclose(sums, torch.ones_like(sums)) == normalized


def test_glam_has_experts_in_every_other_layer_and_a_second_one_by_chance() -> None:
    model = GLaMMoE.tiny(second_expert_threshold=0.3)
    assert model.architecture.moe_layers == (2,)
    assert model.moe_config.router.name == "gshard"
    assert model.moe_config.router.option("second_expert_threshold") == 0.3


@pytest.mark.parametrize("layers", [1, 2, 5, 6])
def test_lists_of_layers_follow_the_number_of_layers(layers: int) -> None:
    windows = GPTOSS.run_config(num_layers=layers).model.sliding_window
    assert windows is not None
    assert windows.layers == (1, 0, 1, 0, 1, 0)[:layers]
    dense = DeepSeekV3.run_config("671b", num_layers=layers).moe.layer_frequency
    expected = {1: (1,), 2: (0, 1), 5: (0, 0, 0, 1, 1), 6: (0, 0, 0, 1, 1, 1)}
    assert dense == expected[layers]


def test_keyword_arguments_win_and_groups_are_changed_field_by_field() -> None:
    config = DeepSeekV3.run_config("tiny", top_k=2, latent_attention={"q_lora_rank": 12})
    latent = config.model.latent_attention
    assert latent is not None
    assert (config.moe.top_k, latent.q_lora_rank, latent.kv_lora_rank) == (2, 12, 16)


@pytest.mark.parametrize("architecture", ALL, ids=lambda it: it.__name__)
def test_the_default_size_is_for_a_laptop_and_every_table_is_used(
    architecture: type[NamedArchitecture],
) -> None:
    config = architecture.run_config()
    config.validate(world_size=1)
    assert config.model.hidden_size == 256
    assert (architecture.table in list_tables()) or architecture is CustomMoE
    for size in architecture.sizes.values():
        assert size.table in list_presets()
        assert load_config(str(size.table)).preset == size.table


def test_every_table_has_a_class() -> None:
    assert {it.table for it in ALL if isinstance(it.table, str)} == set(list_tables())


@pytest.mark.parametrize("architecture", COMPUTED, ids=lambda it: it.__name__)
def test_tiny_model_learns_and_is_saved_as_any_model(
    architecture: type[NamedArchitecture], tmp_path: Any
) -> None:
    torch.manual_seed(0)
    model = architecture.tiny()
    tokens = torch.randint(0, 512, (2, 16))
    loss = model(tokens, labels=tokens).loss
    assert loss is not None
    assert 5 < loss.item() < 8
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.save_pretrained(tmp_path / "saved")
    again = architecture.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(tokens).logits, model.eval()(tokens).logits)


class Doubled(Expert):
    """Twice a matrix."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.up = torch.nn.Linear(hidden_size, intermediate_size)
        self.down = torch.nn.Linear(intermediate_size, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(2 * self.up(x))


def route_first(logits_TE: torch.Tensor, *, top_k: int) -> Routing:
    """The first experts, with the weights that the gate gives them."""
    indices_TK = torch.arange(top_k).expand(len(logits_TE), top_k)
    return Routing.of_indices(indices_TK, logits_TE[:, :top_k].softmax(-1), logits_TE.shape[-1])


def test_custom_moe_has_the_router_and_the_experts_that_it_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(registry, "_ROUTERS", dict(registry._ROUTERS))
    monkeypatch.setattr(kinds, "_KINDS", dict(kinds._KINDS))
    sizes: dict[str, Any] = {"num_experts": 4, "num_layers": 1, "hidden_size": 32}
    model = CustomMoE(router=route_first, expert_class=Doubled, **sizes)
    assert "route_first" in router_names()
    assert "Doubled" in expert_names()
    (info,) = model(torch.arange(6)[None]).routing
    assert info.tokens_per_expert.tolist() == [6, 6, 0, 0]
    assert sum(isinstance(part, Doubled) for part in model.modules()) == 4
    again = CustomMoE(router="route_first", expert_class="Doubled", **sizes)
    assert again.architecture == model.architecture


def test_custom_moe_takes_a_router_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "my_router.py"
    file.write_text(
        "from moe_megatron.routing import Routing\n"
        "def last(logits_TE, *, top_k, sharpness: float = 1.0):\n"
        "    weights_TK, indices_TK = (-sharpness * logits_TE).softmax(-1).topk(top_k)\n"
        "    return Routing.of_indices(indices_TK, weights_TK, logits_TE.shape[-1])\n"
    )
    router = {"name": f"{file}:last", "sharpness": 2.0}
    model = CustomMoE(router=router, num_experts=4, num_layers=1, hidden_size=32)
    assert model.moe_config.router.name == "my_router.py:last"
    assert model.moe_config.router.option("sharpness") == 2.0
    assert model(torch.arange(6)[None]).routing[0].tokens_per_expert.sum() == 12
    with pytest.raises(ConfigError, match=r"my_router.py has no 'first'. It defines last"):
        CustomMoE(router=f"{file}:first")


MISTAKES: dict[str, tuple[Any, str]] = {
    "an unknown option": (
        lambda: SwitchTransformer(num_expert=4),
        r"SwitchTransformer has no option 'num_expert'. Did you mean 'num_experts'\?",
    ),
    "an option of another architecture": (
        lambda: MixtralModel(jitter_noise=0.1),
        "MixtralModel has no option 'jitter_noise'. Options are normalize_expert_weights",
    ),
    "an unknown size": (
        lambda: OLMoE.of_size("7b"),
        "OLMoE has no size '7b'. It has tiny and 1b_7b",
    ),
    "no sizes": (lambda: CustomMoE.tiny(), "no size 'tiny'. It has only its default size"),
    "one field twice": (
        lambda: MixtralModel(top_k=2, experts_per_token=2),
        "experts_per_token and another option both set moe.top_k",
    ),
    "a wrong value": (
        lambda: MixtralModel(normalize_expert_weights="no"),
        "normalize_expert_weights must be True or False, not 'no'",
    ),
    "no class": (
        lambda: CustomMoE(expert_class=Doubled(4, 4)),
        "expert_class needs a class of modules",
    ),
    "no router": (lambda: CustomMoE(router=lambda x: x), "<lambda>"),
    "an unknown router": (lambda: CustomMoE(router="topk"), r"Did you mean 'top_k'\?"),
    "too many experts for a token": (
        lambda: MixtralModel(num_experts=2, top_k=4),
        r"moe.top_k \(4\) must not exceed moe.num_experts \(2\)",
    ),
    "positions": (lambda: SwitchTransformer(8), r"too many positional arguments"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_answered_in_a_paragraph(mistake: str) -> None:
    assert_answered_in_python(*MISTAKES[mistake])
