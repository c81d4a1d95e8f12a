"""`MoELoRA` trains adapters on a model that stays, and gives them back as data."""

from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron.testing.distributed import run_distributed
from moe_megatron.text.loading import load_tokenizer

pytestmark = pytest.mark.distributed

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_layers": 2,
    "num_experts": 4,
    "experts_per_token": 2,
    "vocab_size": 300,
}
EXPERT = "decoder.layers.{}.mlp.experts.local_experts.{}.linear_fc{}.weight"
KINDS: dict[str, dict[str, Any]] = {
    "own": {},
    "dora": {"use_dora": True, "target_modules": ["attention", "expert_fc2"]},
    "by usage": {"ranks": "by_usage", "experts": "top:50%"},
    "qlora": {"use_qlora": True, "target_modules": ["experts"]},
    "shared": {"expert_wise_adaptation": False, "use_rslora": True},
}


def adapt(texts: list[str], tokenizer: Path, folder: Path, kinds: list[str]) -> dict[str, Any]:
    """On a rank: adapters of each kind; what changed, losses of base, run and merged model."""
    from moe_megatron import MoEModel, MoETrainer
    from moe_megatron.mcore import world
    from moe_megatron.peft import ModelAdapters, MoELoRA

    torch.manual_seed(0)
    model = MoEModel(**SIZES)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    how = {"batch_size": 4, "learning_rate": 2e-2, "max_steps": 3, "sequence_length": 16}
    common: dict[str, Any] = {
        "tokenizer": load_tokenizer(str(tokenizer)),
        "run_dir": folder,
        "overrides": {"training.precision": "fp32", "telemetry.console": False},
    }
    found: dict[str, Any] = {}
    for kind in kinds:
        lora = MoELoRA(model, 4, 8, **{**common, **KINDS[kind]})
        base = lora.train(texts, **how)
        after = model.state_dict()
        assert all(torch.equal(value, after[name]) for name, value in before.items()), kind
        merged = MoEModel(**SIZES)
        merged.load_state_dict(with_adapter(model, lora.adapter))
        for name, value in lora.merged().state_dict().items():
            assert torch.allclose(value, merged.state_dict()[name], atol=1e-6), (kind, name)
        ours, theirs = lora.evaluate(texts[:8], sequence_length=16), MoETrainer(merged, **common)
        wanted = theirs.evaluate(texts[:8], sequence_length=16).loss
        assert ours.loss == pytest.approx(wanted, abs=1e-5), kind
        if world.size() == 1:
            lora.save_adapter(folder / "peft")
            loaded = ModelAdapters(model)
            loaded.add("again", folder / "peft")
            with loaded.using("again"):
                again = MoETrainer(model, **common).evaluate(texts[:8], sequence_length=16).loss
            assert again == pytest.approx(wanted, abs=1e-5), kind
        found[kind] = {
            "adapter": lora.adapter,
            "base": base,
            "merged": MoETrainer(merged, router_z_loss_coef=0.0, **common).train(texts, **how),
            "on": lora.train(texts, **how),  # the same data, by the adapter as it was
        }
    world.leave()
    return found


def with_adapter(model: Any, adapter: Any) -> dict[str, torch.Tensor]:
    """The weights of a model with adapters merged, one matrix after the other."""
    from moe_megatron.families.matrix_places import by_place
    from moe_megatron.model.links import links_of
    from moe_megatron.model.matrices import gathered, scatter

    weights = {name: value.clone() for name, value in model.state_dict().items()}
    links = by_place(links_of(model.architecture))
    for place, low_rank in adapter.items():
        scatter(low_rank.merged(gathered(links[place], weights)), links[place], weights)
    return weights


def check(found: dict[str, Any]) -> None:
    for kind, it in found.items():
        trained = it["on"].losses[0]
        assert trained < it["base"].losses[0] - 0.01, kind
        rounding = 0.02 if kind == "qlora" else 1e-5
        assert it["merged"].losses[0] == pytest.approx(trained, abs=rounding), kind
        assert it["on"].losses[-1] < it["on"].losses[0], kind


@pytest.mark.deep
def test_adapters_come_back_and_the_base_stays(
    corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    texts = corpus.read_text().splitlines()[:40]
    (found,) = run_distributed(adapt, texts, tokenizer, tmp_path, ["own"], world_size=1)
    check(found)
    places = {
        EXPERT.format(*it) for it in [(i, e, f) for i in (0, 1) for e in range(4) for f in (1, 2)]
    }
    assert {place: it.rank for place, it in found["own"]["adapter"].items()} == dict.fromkeys(
        places, 4
    )


@pytest.mark.deep
def test_adapters_of_every_kind_do_merged_what_they_did_in_the_run(
    corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    texts = corpus.read_text().splitlines()[:40]
    first, second = run_distributed(adapt, texts, tokenizer, tmp_path, [*KINDS], world_size=2)
    check(first)
    ranks = {place: it.rank for place, it in first["by usage"]["adapter"].items()}
    assert len(ranks) == 2 * 2 * 2  # half of the experts of two layers, two matrices each
    assert len({*ranks.values()}) > 1
    for kind, it in first.items():
        for place, low_rank in it["adapter"].items():
            assert torch.equal(low_rank.b, second[kind]["adapter"][place].b), (kind, place)
            assert (low_rank.magnitude is not None) == (kind == "dora")
    shared = first["shared"]["adapter"]
    assert torch.equal(shared[EXPERT.format(0, 0, 1)].a, shared[EXPERT.format(0, 3, 1)].a)
    assert shared[EXPERT.format(0, 0, 1)].scale == 4.0
