"""Experts kept or merged by their use, against the same done by hand in torch."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from moe_megatron.checkpoint.convert import Execution, export_checkpoint, import_checkpoint
from moe_megatron.checkpoint.edit.edits import Upcycling
from moe_megatron.checkpoint.edit.fewer_experts import FewerExperts, KeepMostUsed, MergeLeastUsed
from moe_megatron.checkpoint.edit.selection import Selection
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.errors import CheckpointError, DataError
from moe_megatron.families import family_of
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.testing.tiny_models import add_prediction, save

QUIET = Execution(progress=False)
Read = Callable[[Path], dict[str, Tensor]]


def profile_of(folder: Path, seed: int = 0) -> RoutingProfile:
    """Random use of the experts of a model; every layer has its own order."""
    held = HfFolder(folder)
    geometry = family_of(held.config).geometry(held.config, held.tensors)
    layers = tuple(n for n, moe in enumerate(geometry.moe_layers, start=1) if moe)
    profile = RoutingProfile.empty(
        layers=layers, num_experts=geometry.experts, top_k=geometry.top_k
    )
    draw = np.random.default_rng(seed)
    profile.tokens_per_expert[:] = draw.permuted(
        np.tile(np.arange(geometry.experts) * 10, (len(layers), 1)), axis=1
    )
    profile.assigned[:] = profile.tokens_per_expert.sum(axis=1)
    profile.tokens = int(profile.assigned[0]) // geometry.top_k
    return profile


def there_and_back(source: Path, experts: FewerExperts) -> Path:
    work = source.parent
    import_checkpoint(source, work / "megatron", experts=experts, execution=QUIET)
    export_checkpoint(work / "megatron", work / "back", execution=QUIET)
    return work / "back"


@pytest.mark.parametrize("fused", [False, True], ids=["classic", "fused"])
def test_most_used_experts_of_each_layer_stay_bit_by_bit(
    fused: bool, tmp_path: Path, tensors: Read
) -> None:
    source = tmp_path / "source"
    save("mixtral", source, fused=fused)
    profile = profile_of(source)
    back = there_and_back(source, KeepMostUsed(num_experts=2, profile=profile))
    before, after = tensors(source), tensors(back)
    kept = [sorted(np.argsort(-counts)[:2].tolist()) for counts in profile.tokens_per_expert]
    assert len({tuple(layer) for layer in kept}) > 1, "layers differ, or this tests too little"
    for name, value in after.items():
        layer = int(match[1]) if (match := re.search(r"layers\.(\d+)", name)) else None
        expert = re.search(r"experts\.(\d+)\.", name)
        if layer is not None and expert:
            old = kept[layer][int(expert[1])]
            expected = before[name.replace(expert[0], f"experts.{old}.")]
        elif layer is not None and ("gate.weight" in name or ".experts." in name):
            expected = before[name][kept[layer]]
        else:
            expected = before[name]
        assert torch.equal(value, expected), name
    assert len(after) == len(before) - (0 if fused else 3 * 2 * 3)
    config = json.loads((back / "config.json").read_text())
    assert config == json.loads((source / "config.json").read_text()) | {"num_local_experts": 2}


def test_dropping_experts_that_no_token_visits_changes_no_logit(
    tmp_path: Path, mixtral: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(mixtral)
    tokens = torch.tensor([[17]])  # visits two experts of each layer
    with torch.no_grad():
        answer = model(tokens, output_router_logits=True)
    profile = profile_of(mixtral)
    for layer, logits in enumerate(answer.router_logits):
        used = torch.bincount(logits.topk(2).indices.flatten(), minlength=4)
        profile.tokens_per_expert[layer] = used.numpy()
    wanted = KeepMostUsed(num_experts=2, profile=profile)
    import_checkpoint(mixtral, tmp_path / "megatron", experts=wanted, execution=QUIET)
    export_checkpoint(tmp_path / "megatron", tmp_path / "back", execution=QUIET)
    reduced = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    with torch.no_grad():
        torch.testing.assert_close(reduced(tokens).logits, answer.logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_merged_experts_are_averages_weighted_by_use(
    name: str, tmp_path: Path, tensors: Read
) -> None:
    source = tmp_path / "source"
    save(name, source, fused=True)
    profile = profile_of(source)
    back = there_and_back(source, MergeLeastUsed(num_experts=2, profile=profile))
    export_checkpoint(tmp_path / "megatron", tmp_path / "fused", fused=True, execution=QUIET)
    before, after = tensors(source), tensors(tmp_path / "fused")
    assert back.is_dir()
    for layer, counts in enumerate(profile.tokens_per_expert):
        kept = sorted(np.argsort(-counts)[:2].tolist())
        router = before[next(n for n in before if re.search(rf"\.{layer}\.\S+(gate|router)\.w", n))]
        rows = torch.nn.functional.normalize(router, dim=1)
        groups: dict[int, list[int]] = {expert: [expert] for expert in kept}
        for expert in set(range(4)) - set(kept):
            near = max(kept, key=lambda k: float(rows[k] @ rows[expert]))
            groups[near].append(expert)
        for tensor, value in before.items():
            if f"layers.{layer}." not in tensor or ".experts." not in tensor:
                continue
            for new, expert in enumerate(kept):
                members = groups[expert]
                weights = torch.tensor([float(counts[m]) for m in members])
                mean = torch.einsum("e,e...->...", weights / weights.sum(), value[members])
                torch.testing.assert_close(after[tensor][new], mean, atol=1e-6, rtol=1e-6)
        for tensor in (n for n in before if f"layers.{layer}." in n and len(before[n]) == 4):
            if ".experts." not in tensor:
                assert torch.equal(after[tensor], before[tensor][kept]), tensor


def test_merging_copies_gives_them_back(tmp_path: Path, tensors: Read, mixtral: Path) -> None:
    selection = Selection(experts=(0, 1, 2, 3, 0, 1, 2, 3))
    import_checkpoint(mixtral, tmp_path / "twice", selection=selection, execution=QUIET)
    export_checkpoint(tmp_path / "twice", tmp_path / "source", execution=QUIET)
    profile = profile_of(tmp_path / "source")
    profile.tokens_per_expert[:] = [90, 80, 70, 60, 0, 1, 2, 3]
    back = there_and_back(tmp_path / "source", MergeLeastUsed(num_experts=4, profile=profile))
    before, after = tensors(mixtral), tensors(back)
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, atol=1e-6, rtol=1e-6)


def test_groups_keep_equally_many_experts_and_prediction_layers_go(
    tmp_path: Path, tensors: Read
) -> None:
    source = tmp_path / "source"
    (tmp_path / "other").mkdir()
    save("deepseek_v3", source, fused=False)
    profile = profile_of(source)
    profile.tokens_per_expert[:] = np.arange(16)  # the last group has the most used ones
    back = there_and_back(source, KeepMostUsed(num_experts=8, profile=profile))
    before, after = tensors(source), tensors(back)
    router = "model.layers.2.mlp.gate.weight"
    kept = [2, 3, 6, 7, 10, 11, 14, 15]
    assert torch.equal(after[router], before[router][kept])
    bias = "model.layers.2.mlp.gate.e_score_correction_bias"
    assert torch.equal(after[bias], before[bias][kept])
    config = json.loads((back / "config.json").read_text())
    assert config["n_routed_experts"] == 8
    # With a layer for prediction, whose counts come last, the others are kept as before.
    source = source.rename(tmp_path / "other" / "source")
    add_prediction(source, copies=True)
    wider = RoutingProfile.empty(layers=(*profile.layers, 6), num_experts=16, top_k=4)
    wider.tokens_per_expert[:-1], wider.tokens = profile.tokens_per_expert, profile.tokens
    again = there_and_back(source, KeepMostUsed(num_experts=8, profile=wider))
    assert tensors(again).keys() == after.keys()
    assert torch.equal(tensors(again)[router], after[router])
    with pytest.raises(CheckpointError, match="in multiples of its 4 groups"):
        there_and_back(source, KeepMostUsed(num_experts=6, profile=profile))


def test_profile_beside_the_weights_is_found_and_does_not_travel_on(
    tmp_path: Path, mixtral: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in mixtral.iterdir():
        (source / file.name).symlink_to(file)
    with pytest.raises(CheckpointError, match=r"has no routing_profile\.json, so the use of its"):
        there_and_back(source, KeepMostUsed(num_experts=2))
    profile_of(source).save(source / "routing_profile.json")
    back = there_and_back(source, KeepMostUsed(num_experts=2))
    assert not (back / "routing_profile.json").exists()
    import_checkpoint(source, tmp_path / "whole", execution=QUIET)
    assert (tmp_path / "whole" / "release" / "routing_profile.json").exists()


def test_what_does_not_fit_the_model_is_refused(tmp_path: Path, mixtral: Path) -> None:
    profile = profile_of(mixtral)
    empty = RoutingProfile.empty(layers=(1, 2, 3), num_experts=4, top_k=2)
    other = RoutingProfile.empty(layers=(1, 2), num_experts=8, top_k=2)
    cases: list[tuple[dict[str, object], type[Exception], str]] = [
        ({"num_experts": 1, "profile": profile}, CheckpointError, "sends a token to 2. Keep 2 to"),
        ({"num_experts": 5, "profile": profile}, CheckpointError, "cannot keep 5 experts"),
        ({"num_experts": 2, "profile": empty}, CheckpointError, "has counted no tokens"),
        ({"num_experts": 2, "profile": other}, CheckpointError, r"is of layers \[1, 2\] with 8"),
        ({"num_experts": 2, "profile": tmp_path / "no.json"}, DataError, "no such file"),
    ]
    for options, error, message in cases:
        with pytest.raises(error, match=message):
            import_checkpoint(
                mixtral, tmp_path / "m", experts=KeepMostUsed(**options), execution=QUIET
            )
    fewer = KeepMostUsed(num_experts=2, profile=profile)
    for more in ({"selection": Selection(experts=(0,))}, {"upcycling": Upcycling()}):
        with pytest.raises(CheckpointError, match="exclude each other"):
            import_checkpoint(mixtral, tmp_path / "m", experts=fewer, **more, execution=QUIET)
    assert not (tmp_path / "m").exists()


def test_models_without_experts_are_refused(tmp_path: Path) -> None:
    save("llama", tmp_path / "source", fused=False)
    with pytest.raises(CheckpointError, match="a llama model has no experts to keep or merge"):
        import_checkpoint(tmp_path / "source", tmp_path / "m", experts=KeepMostUsed(num_experts=2))
