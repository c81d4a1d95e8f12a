"""What `MoELoRA` answers to mistakes, and what it makes of a routing profile."""

from typing import Any

import numpy as np
import pytest

from moe_megatron import MoEModel
from moe_megatron.errors import ConfigError
from moe_megatron.finetuning.adapter_choice import on_experts, ranks_by_usage
from moe_megatron.finetuning.used_experts import most_used_experts
from moe_megatron.peft import MoELoRA
from moe_megatron.telemetry.values.profile import RoutingProfile

MODEL = MoEModel(hidden_size=16, num_layers=2, num_experts=4, vocab_size=64)

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "rank 0": ({"r": 0}, "r (0) must be a whole number"),
    "name": ({"target_modules": ["expert_fc3"]}, "'expert_fc3'. Did you mean 'expert_fc"),
    "no names": ({"target_modules": []}, "target_modules ([]) must be a list of names"),
    "one name": ({"target_modules": "expert_fc1"}, "must be a list of names, such as ['exp"),
    "router": ({"target_modules": ["router"]}, "names no matrix that can have an adapter"),
    "layer": ({"target_modules": ["experts@3"]}, "it has 2 layers, which count from 1"),
    "sharing": ({"expert_wise_adaptation": "b"}, "expert_wise_adaptation ('b') must be True"),
    "a large rank": ({"r": 17}, "the rank 17 of an adapter is larger than decoder.layers.0."),
    "a pattern": ({"target_modules": ["*.linear_fc3.weight"]}, "names no matrix that can have"),
    "ranks": ({"ranks": "by_size"}, "ranks ('by_size') must be 'by_usage' or ranks by selector"),
    "a rank": ({"ranks": {"experts@1": 0}}, "the rank of experts@1 (0) must be a whole number"),
    "rule": ({"experts": "top:120%"}, "must be a rule such as 'top:25%'"),
    "dropout": ({"lora_dropout": 1.0}, "adapter.dropout must be at least 0 and less than 1"),
    "alpha": ({"lora_alpha": 0}, "adapter.alpha must be greater than 0"),
    "weights": (
        {"overrides": {"finetune.train": ["router"]}},
        "overrides cannot set finetune.train: MoELoRA(...) trains adapters alone",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_answered_in_a_paragraph(name: str) -> None:
    arguments, said = MISTAKES[name]
    with pytest.raises(ConfigError) as error:
        MoELoRA(MODEL, **arguments)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_adapter_is_there_after_training_alone() -> None:
    with pytest.raises(ConfigError, match=r"there is no adapter yet; call train\(\.\.\.\) first"):
        _ = MoELoRA(MODEL).adapter


def profile(*counts: list[int]) -> RoutingProfile:
    found = RoutingProfile.empty(
        layers=tuple(range(1, len(counts) + 1)), num_experts=len(counts[0]), top_k=1
    )
    found.tokens_per_expert[:] = np.array(counts)
    return found


def test_ranks_by_usage_follow_tokens_between_1_and_four_times_the_mean() -> None:
    ranks = ranks_by_usage(profile([50, 30, 20, 0], [100, 0, 0, 0]), 4, 64)
    assert ranks == [
        "experts@1:3=1",
        "experts@1:2=3",
        "experts@1:1=5",
        "experts@1:0=8",
        "experts@2:1-3=1",
        "experts@2:0=16",
    ]
    assert ranks_by_usage(profile([100, 0]), 4, 6) == ["experts@1:1=1", "experts@1:0=6"]


def test_chosen_experts_take_the_place_of_all() -> None:
    chosen = most_used_experts(profile([5, 1, 9, 0], [1, 1, 1, 7]), 0.5)
    assert [it.experts for it in chosen] == [(2, 0), (3, 0)]
    both = ["expert_fc1", "expert_fc2", "attention"]
    assert on_experts(both, chosen) == ["attention", "experts@1:0,2", "experts@2:0,3"]
    assert on_experts(["expert_fc2"], chosen[:1]) == [
        "decoder.layers.0.mlp.experts.local_experts.0.linear_fc2.weight",
        "decoder.layers.0.mlp.experts.local_experts.2.linear_fc2.weight",
    ]


@pytest.mark.parametrize("part", [0, 1.5])
def test_part_of_the_experts_must_be_one(part: float) -> None:
    with pytest.raises(ConfigError, match="must be above 0 and at most 1; try"):
        most_used_experts(profile([1, 2]), part)


def test_a_model_of_few_positions_needs_no_shorter_sequences_to_be_named() -> None:
    MoELoRA(MoEModel(hidden_size=16, num_layers=1, num_experts=4, max_position_embeddings=64))
