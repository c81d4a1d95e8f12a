"""An architecture of which only this file knows: a table, its sizes, and a run in Megatron."""

from pathlib import Path

import torch

from moe_megatron.architectures import NamedArchitecture, Size
from moe_megatron.config import dump_yaml, load_config

# --- the architecture: all that its author writes ------------------------------------------------


class Wide(NamedArchitecture):
    """Mixtral with more and smaller experts, one of them shared."""

    table = {
        "base": "architectures/mixtral",
        "moe": {
            "num_experts": 32,
            "top_k": 4,
            "expert_hidden_size": 64,
            "shared_expert_hidden_size": 64,
        },
    }
    sizes = {"tiny": Size(table={"base": ["mixtral_tiny"], "moe": {"num_experts": 4, "top_k": 4}})}


# -------------------------------------------------------------------------------------------------


def test_it_is_a_model_with_the_choices_of_its_base() -> None:
    model = Wide(num_layers=1)
    assert (model.num_experts, model.experts_per_token) == (32, 4)
    assert model.model_config.rotary_base == 1_000_000
    assert model(torch.arange(8)[None]).logits.shape == (1, 8, model.vocab_size)
    assert Wide.tiny().num_experts == 4


def test_its_configuration_is_a_file_that_a_run_takes(tmp_path: Path) -> None:
    path = tmp_path / "wide.yaml"
    path.write_text(dump_yaml(Wide.run_config("tiny")))
    config = load_config(path)
    config.validate(world_size=2)
    assert config.architecture == Wide.run_config("tiny").architecture


def test_a_file_alone_is_an_architecture_too(tmp_path: Path) -> None:
    path = tmp_path / "narrow.yaml"
    path.write_text("base: [architectures/olmoe, test_tiny]\nmoe: {top_k: 2}\n")

    class Narrow(NamedArchitecture):
        """What the file says."""

        table = str(path)

    assert Narrow(top_k=1).experts_per_token == 1
    assert Narrow().model_config.qk_norm_scope == "all_heads"
