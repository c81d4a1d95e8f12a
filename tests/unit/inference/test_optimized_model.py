"""A model whose experts come and go computes what the whole one does, to the bit."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from moe_megatron.caching import ExpertCache
from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.inference.cache.simulator import simulate
from moe_megatron.inference.cache.trace import Trace
from moe_megatron.inference.optimized_model import OptimizedMoEModel
from moe_megatron.telemetry.values.profile import RoutingProfile
from moe_megatron.testing.expert_models import FAMILIES, STACKED, save_model

IDS = torch.arange(18).view(2, 9)


def cache_for(
    model: OptimizedMoEModel, slots: int, policy: str = "lru", **more: Any
) -> ExpertCache:
    cache = ExpertCache((slots + 0.5) * model.store.nbytes / 1e9, policy, **more)
    model.set_expert_cache(cache)
    return cache


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("olmoe", tmp_path_factory.mktemp("olmoe"))


@pytest.fixture
def model(folder: Path) -> Any:
    with_cache = OptimizedMoEModel.from_pretrained(folder)
    yield with_cache
    with_cache.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", [*FAMILIES, STACKED])
def test_logits_and_texts_are_those_of_the_whole_model(
    family: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    save_model(family, tmp_path, dtype)
    whole: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto").eval()
    whole.set_experts_implementation("eager")
    some = OptimizedMoEModel.from_pretrained(tmp_path)
    loaded = sum(it.numel() for it in some.model.parameters())
    experts = len(some.store.keys) * some.store.nbytes // whole.dtype.itemsize
    assert loaded == sum(it.numel() for it in whole.parameters()) - experts
    with torch.inference_mode():
        wanted = whole(IDS).logits
        words = whole.generate(IDS[:1], max_new_tokens=8, do_sample=False)
    for slots in (2, 5, 8):
        cache_for(some, slots * len(some.store.layers), "weighted_lru")
        assert torch.equal(some(IDS).logits, wanted)
        assert torch.equal(some.generate(IDS[:1], max_new_tokens=8, do_sample=False), words)
    assert torch.equal(some(IDS).logits, wanted)
    some.close()


def test_the_cache_does_what_the_simulator_says(model: OptimizedMoEModel) -> None:
    with model.record() as recorder:
        model.generate(IDS[:1], max_new_tokens=20, do_sample=False)
    trace = recorder.trace("pass")
    assert len(trace.passes) == 20
    for policy in ("lru", "lfu", "weighted_lru"):
        cache = cache_for(model, 9, policy)
        model.generate(IDS[:1], max_new_tokens=20, do_sample=False)
        stats, tally = cache.get_stats(), simulate(trace, 9, policy)
        assert (stats.hits, stats.misses, stats.evictions) == (
            tally.hits,
            tally.misses,
            tally.evictions,
        )
        assert stats.bytes_read == stats.misses * model.store.nbytes
        assert stats.passes == 20
    assert stats.avg_load_time_ms > 0


def test_tokens_of_one_pass_are_those_of_decoding(model: OptimizedMoEModel) -> None:
    with model.record() as together:
        model(IDS[:1])
    with model.record() as alone:
        for end in range(1, 10):
            model(IDS[:1, :end])
    by_token = together.trace("token").passes
    assert len(by_token) == 9
    last = [alone.trace("token").passes[it * (it + 1) // 2 - 1] for it in range(1, 10)]
    assert list(by_token) == last


def test_a_lost_file_fails_one_call_and_no_more(tmp_path: Path) -> None:
    save_model("olmoe", tmp_path)
    model = OptimizedMoEModel.from_pretrained(tmp_path)
    cache_for(model, 6)
    wanted = model(IDS).logits
    file = tmp_path / "model.safetensors"
    data = file.read_bytes()
    os.truncate(file, 4096)
    with pytest.raises(CheckpointError, match="cannot be read: the file ends before it"):
        model(IDS)
    file.write_bytes(data)
    assert torch.equal(model(IDS).logits, wanted)
    model.close()


def test_what_a_profile_counted_is_read_at_once(folder: Path) -> None:
    profile = RoutingProfile.empty(layers=(1, 2, 3), num_experts=8, top_k=2)
    profile.tokens_per_expert[:] = np.arange(24).reshape(3, 8)
    model = OptimizedMoEModel.from_pretrained(folder, profile=profile)
    cache = cache_for(model, 12, "static", preload_top_k=3)
    assert list(cache.resident()) == [
        (0, 5),
        (0, 6),
        (0, 7),
        (1, 5),
        (1, 6),
        (1, 7),
        (2, 5),
        (2, 6),
        (2, 7),
    ]
    model.close()


def test_auto_is_what_is_best_on_the_trace(model: OptimizedMoEModel, tmp_path: Path) -> None:
    with model.record() as recorder:
        model(IDS)
    recorder.trace().save(tmp_path / "trace.jsonl")
    cache_for(model, 9, "auto", trace=tmp_path / "trace.jsonl")
    model(IDS)
    trace = recorder.trace()
    other = Trace(replace(trace.about, top_k=1), trace.passes)
    with pytest.raises(ConfigError, match="1 for a token, and this one has 3 of 8, 2 for a token"):
        cache_for(model, 9, "auto", trace=other)


def test_a_profile_beside_a_trace_speaks_of_the_same_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trace counts layers with experts, a profile all of them."""
    save_model("deepseek_v3", tmp_path)
    uses = np.arange(16).reshape(2, 8)
    profile = RoutingProfile.empty(layers=(2, 3), num_experts=8, top_k=2)
    profile.tokens_per_expert[:] = uses
    model = OptimizedMoEModel.from_pretrained(tmp_path, profile=profile)
    with model.record() as recorder:
        model(IDS)
    told = {}
    monkeypatch.setattr(
        "moe_megatron.inference.expert_cache.best_policy",
        lambda trace, slots, counts: told.update(counts) or "lru",
    )
    cache_for(model, 8, "auto", trace=recorder.trace())
    assert told == {(row, expert): uses[row, expert] for row in (0, 1) for expert in range(8)}
    model.close()


def test_experts_of_a_layer_are_a_size_too(model: OptimizedMoEModel) -> None:
    model.enable_dynamic_loading(4, eviction_policy="lfu")
    model(IDS)
    assert model.get_expert_cache().get_stats().slots == 12


def mistakes(model: OptimizedMoEModel, folder: Path) -> dict[str, tuple[Any, str]]:
    profile = RoutingProfile.empty(layers=(1, 2), num_experts=8, top_k=2)
    small = model.store.nbytes / 1e9
    return {
        "small": (lambda: cache_for(model, 5), "a token needs 2 in each of 3 layers; give"),
        "tiny": (lambda: model.set_expert_cache(ExpertCache(small / 9)), "has room for 0 experts"),
        "few": (lambda: model.enable_dynamic_loading(1), "a token needs 2 in each of 3 layers"),
        "no cache": (lambda: model.set_expert_cache(4), "cache (4) must be an ExpertCache"),
        "no size": (lambda: ExpertCache(0), "capacity_gb (0)"),
        "no policy": (lambda: ExpertCache(1, policy="lrru"), "Did you mean 'lru'?"),
        "no trace": (
            lambda: ExpertCache(1, policy="auto"),
            "record one with `moe-megatron cache re",
        ),
        "no profile": (
            lambda: cache_for(model, 8, preload_top_k=2),
            "preload_top_k (2) needs to know which experts are used most",
        ),
        "another profile": (
            lambda: OptimizedMoEModel.from_pretrained(folder, profile=profile),
            "the profile has 2 layers of 8 experts",
        ),
        "unopened": (lambda: ExpertCache(1).get_stats(), "belongs to no model yet"),
    }


def test_mistakes_are_answered_in_a_paragraph(model: OptimizedMoEModel, folder: Path) -> None:
    for call, said in mistakes(model, folder).values():
        with pytest.raises(ConfigError) as error:
            call()
        assert said in str(error.value)
        assert "\n" not in str(error.value)


def test_a_megatron_checkpoint_is_exported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moe_megatron.checkpoint.convert import import_checkpoint

    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(tmp_path / "cache"))
    source = save_model("olmoe", tmp_path / "hf")
    import_checkpoint(source, tmp_path / "megatron")
    wanted = OptimizedMoEModel.from_pretrained(source)(IDS).logits
    made = []
    for _ in range(2):
        model = OptimizedMoEModel.from_pretrained(tmp_path / "megatron")
        assert torch.equal(model(IDS).logits, wanted)
        made.append((model.store.path, model.store.path.stat().st_ino))
        model.close()
    assert made[0] == made[1]
    (made[0][0] / "model.safetensors").write_bytes(b"")
    model = OptimizedMoEModel.from_pretrained(tmp_path / "megatron")
    assert torch.equal(model(IDS).logits, wanted)
    model.close()


def test_a_model_of_ours_computes_the_same_with_a_cache(tmp_path: Path) -> None:
    from moe_megatron import MoEModel

    torch.manual_seed(0)
    ours = MoEModel(
        hidden_size=32, num_experts=4, experts_per_token=2, num_layers=2, vocab_size=64
    ).eval()
    some = OptimizedMoEModel.from_model(ours, tmp_path / "saved")
    some.enable_dynamic_loading(2)
    with torch.no_grad():
        torch.testing.assert_close(some(IDS).logits, ours(IDS).logits, atol=1e-5, rtol=1e-4)
    some.close()
