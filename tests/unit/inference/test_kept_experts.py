"""Loading some experts alone gives what the model does that the converter writes of them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from moe_megatron.checkpoint.convert import Execution, export_checkpoint, import_checkpoint
from moe_megatron.checkpoint.edit.fewer_experts import KeepMostUsed
from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.inference.kept_experts import Routed, kept_experts, share_kept
from moe_megatron.inference.optimized_model import OptimizedMoEModel
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.testing.expert_models import FAMILIES, STACKED, save_model

IDS = torch.arange(18).view(2, 9)
QUIET = Execution(progress=False)


def profile_of(layers: tuple[int, ...], counts: Any) -> RoutingProfile:
    profile = RoutingProfile.empty(layers=layers, num_experts=len(counts[0]), top_k=2)
    profile.tokens_per_expert[:] = counts
    profile.assigned[:] = profile.tokens_per_expert.sum(axis=1)
    profile.tokens = int(profile.assigned[0]) // 2
    return profile


def routed(groups: int = 1, layers: int = 3) -> Routed:
    return Routed(
        path=Path("my_model"),
        layers=tuple(range(1, layers + 1)),
        last=layers,
        experts=8,
        top_k=2,
        groups=groups,
        chosen_groups=1,
    )


@pytest.mark.parametrize("family", [*FAMILIES, STACKED])
def test_the_most_used_alone_are_the_model_that_the_converter_writes(
    family: str, tmp_path: Path
) -> None:
    source = save_model(family, tmp_path / "source")
    layers = (2, 3) if family == "deepseek_v3" else (1, 2, 3)
    draw = np.random.default_rng(0)
    counts = [draw.permutation(8) * 10 + 2 for _ in layers]
    profile = profile_of(layers, counts)
    import_checkpoint(
        source,
        tmp_path / "megatron",
        experts=KeepMostUsed(num_experts=4, profile=profile),
        execution=QUIET,
    )
    export_checkpoint(tmp_path / "megatron", tmp_path / "written", execution=QUIET)
    written: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "written", dtype="auto").eval()
    written.set_experts_implementation("eager")
    some = OptimizedMoEModel.from_pretrained(source, "frequency_based", 4, profile=profile)
    assert len(some.store.keys) == 4 * len(layers)
    for slots in (4, 2):
        some.enable_dynamic_loading(slots)
        with torch.inference_mode():
            assert torch.equal(some(IDS).logits, written(IDS).logits)
    some.close()


def test_a_layer_may_keep_a_number_of_its_own(tmp_path: Path) -> None:
    """What is left out is as if its logits were minus infinity."""
    source = save_model("mixtral", tmp_path / "source")
    kept = [[0, 1, 2, 3, 4, 5, 6, 7], [1, 4], [0, 2, 7]]
    some = OptimizedMoEModel.from_pretrained(source, lambda _: kept)
    whole: Any = AutoModelForCausalLM.from_pretrained(source, dtype="auto").eval()
    whole.set_experts_implementation("eager")
    for layer, experts in zip(whole.model.layers, kept, strict=True):
        left = [it for it in range(8) if it not in experts]
        layer.mlp.gate.register_forward_hook(_masked(left, layer.mlp.gate.top_k))
    with torch.inference_mode():
        torch.testing.assert_close(some(IDS).logits, whole(IDS).logits)
        words = whole.generate(IDS, max_new_tokens=5, do_sample=False)
    assert torch.equal(some.generate(IDS, max_new_tokens=5, do_sample=False), words)
    some.close()


def _masked(left: list[int], top_k: int) -> Callable[..., Any]:
    def hook(_module: Any, _given: Any, output: Any) -> Any:
        logits = output[0].index_fill(1, torch.tensor(left, dtype=torch.long), float("-inf"))
        weights, experts = logits.float().softmax(1).topk(top_k)
        return logits, weights / weights.sum(1, keepdim=True), experts

    return hook


def test_by_layer_keeps_the_largest_share_and_fewer_where_use_is_concentrated() -> None:
    even, one = [50] * 8, [330, 60, 4, 3, 2, 1, 0, 0]
    counts = np.array([even, one, [100, 100, 90, 80, 10, 10, 5, 5]])
    kept = kept_experts("by_layer", 4, routed(), profile_of((1, 2, 3), counts))
    alike = kept_experts("frequency_based", 4, routed(), profile_of((1, 2, 3), counts))
    assert kept is not None
    assert alike is not None
    assert [len(it) for it in kept.values()] == [6, 2, 4]
    assert kept[1] == (0, 1)
    assert share_kept(counts, kept) > share_kept(counts, alike)


def test_groups_of_experts_keep_as_many_each() -> None:
    counts = np.array([[9, 8, 7, 6, 1, 1, 1, 1], [1, 2, 3, 4, 5, 6, 7, 8], [4] * 8])
    for strategy in ("frequency_based", "by_layer"):
        kept = kept_experts(strategy, 6, routed(groups=2), profile_of((1, 2, 3), counts))
        assert kept is not None
        assert sum(map(len, kept.values())) == 18
        for experts in kept.values():
            assert sum(it < 4 for it in experts) * 2 == len(experts) >= 4


def mistakes(folder: Path) -> dict[str, tuple[Any, type[Exception], str]]:
    load = OptimizedMoEModel.from_pretrained
    groups, profile = routed(groups=2), profile_of((1, 2), [[1] * 8] * 2)
    more = profile_of((1, 2, 3), [[1] * 8] * 3)
    return {
        "name": (lambda: load(folder, "frequency"), ConfigError, "Did you mean 'frequency_based'?"),
        "no number": (lambda: load(folder, "by_layer"), ConfigError, "needs num_experts_to_load"),
        "all": (lambda: load(folder, "all", 4), ConfigError, "name another strategy"),
        "number alone": (lambda: load(folder, num_experts_to_load=4), ConfigError, "loads all"),
        "too few": (lambda: load(folder, "by_layer", 1), ConfigError, "load 2 to 8."),
        "too many": (lambda: load(folder, "by_layer", 9), ConfigError, "load 2 to 8."),
        "groups": (
            lambda: kept_experts("by_layer", 5, groups, None),
            ConfigError,
            "load 4 to 8, in multiples of its 2 groups.",
        ),
        "no profile": (
            lambda: load(folder, "frequency_based", 4),
            CheckpointError,
            "has no routing_profile.json",
        ),
        "another profile": (
            lambda: load(folder, "by_layer", 4, profile=profile),
            CheckpointError,
            "give the profile of this model",
        ),
        "a deeper model's profile": (
            lambda: load(folder, "by_layer", 4, profile=profile_of((1, 2, 3, 4), [[1] * 8] * 4)),
            CheckpointError,
            "is of layers [1, 2, 3, 4]",
        ),
        "a profile of more experts a token": (
            lambda: kept_experts("by_layer", 4, replace(routed(), top_k=4), more),
            CheckpointError,
            "is of a model that sends a token to 2 experts, and this one sends it to 4",
        ),
        "layers": (
            lambda: load(folder, lambda _: [[0, 1]]),
            ConfigError,
            "the experts of 1 layers",
        ),
        "twice": (lambda: load(folder, lambda _: [[1, 1]] * 3), ConfigError, "2 or more different"),
        "unequal": (
            lambda: kept_experts(lambda _: [[0, 1, 2, 4]] * 3, None, groups, None),
            ConfigError,
            "keep as many of each",
        ),
        "device": (lambda: load(folder, device_map="mps"), ConfigError, "must be 'cpu'"),
    }


def test_mistakes_are_answered_in_a_paragraph(tmp_path: Path) -> None:
    for call, kind, said in mistakes(save_model("olmoe", tmp_path)).values():
        with pytest.raises(kind) as error:
            call()
        assert said in str(error.value)
        assert "\n" not in str(error.value)
