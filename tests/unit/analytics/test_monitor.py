import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moe_megatron.analytics import RouterMonitor
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.families import FAMILIES
from moe_megatron.model import MoEModel
from moe_megatron.routing import Routing, registered_router
from moe_megatron.telemetry.catalog import quantity_names, registered
from moe_megatron.telemetry.quantity import Quantity, RoutedTokens
from moe_megatron.testing import tiny_models

Make = Callable[..., MoEModel]


def slow_statistics(scores: list[list[float]], chosen: list[list[int]], num_experts: int) -> dict:
    """Statistics of one layer, token by token. `scores` sum to 1, `chosen` reached an expert."""
    counts = [sum(row.count(expert) for row in chosen) for expert in range(num_experts)]
    total = sum(counts)
    shares = [count / total for count in counts]
    mean = sum(shares) / num_experts
    variance = sum((share - mean) ** 2 for share in shares) / num_experts
    probability = [sum(row[e] for row in scores) / len(scores) for e in range(num_experts)]
    return {
        "counts": counts,
        "load_variance": variance,
        "load_cv": math.sqrt(variance) * num_experts,
        "imbalance": max(shares) * num_experts,
        "entropy": -sum(p * math.log(p) for row in scores for p in row if p > 0) / len(scores),
        "aux_loss": num_experts * sum(f * p for f, p in zip(shares, probability, strict=True)),
        "dead": counts.count(0),
    }


def assert_equals_slow(monitor: RouterMonitor, layers: list[dict]) -> None:
    stats, profile = monitor.get_stats(), monitor.profile()
    assert profile.tokens_per_expert.tolist() == [layer["counts"] for layer in layers]
    for name in ("load_variance", "load_cv", "imbalance", "entropy", "aux_loss"):
        mean = sum(layer[name] for layer in layers) / len(layers)
        assert getattr(stats, name) == pytest.approx(mean, rel=1e-5), name
    assert stats.max_imbalance == pytest.approx(max(layer["imbalance"] for layer in layers))
    assert stats.dead_experts == sum(layer["dead"] for layer in layers)
    assert stats.entropy_ratio == pytest.approx(stats.entropy / math.log(profile.num_experts))


@torch.no_grad()
def test_our_model_gives_the_statistics_of_its_routing(
    make_model: Make, padded: tuple[Tensor, Tensor]
) -> None:
    model = make_model()
    monitor = RouterMonitor(model)
    with monitor.track():
        output = model(*padded)
    valid = padded[1].bool()
    assert_equals_slow(
        monitor,
        [
            slow_statistics(info.scores[valid].tolist(), info.indices[valid].tolist(), 4)
            for info in output.routing
        ],
    )
    stats = monitor.get_stats()
    assert stats.tokens == 16
    assert stats.drop_rate == 0.0
    assert stats.aux_loss == pytest.approx(float(output.aux_loss), rel=1e-5)
    assert stats.z_loss == pytest.approx(float(output.z_loss), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("mask", [True, False])
def test_models_of_transformers_give_the_statistics_of_their_router_logits(
    foreign: Any, padded: tuple[Tensor, Tensor], mask: bool
) -> None:
    ids = padded[0]
    valid = padded[1] if mask else torch.ones_like(ids)
    monitor = RouterMonitor(foreign)
    with monitor.track():
        output = foreign(ids, attention_mask=valid, output_router_logits=True)
    layers, squares = [], []
    for logits in output.router_logits:
        kept = logits.reshape(*ids.shape, -1)[valid.bool()].double()
        scores = kept.softmax(-1)
        chosen = scores.topk(foreign.config.num_experts_per_tok).indices
        layers.append(slow_statistics(scores.tolist(), chosen.tolist(), logits.shape[-1]))
        squares += [math.log(sum(math.exp(x) for x in row)) ** 2 for row in kept.tolist()]
    assert_equals_slow(monitor, layers)
    assert monitor.get_stats().z_loss == pytest.approx(sum(squares) / len(squares), rel=1e-5)


def spread_of_logits(routed: RoutedTokens) -> Tensor:
    return routed.logits_TE.amax(-1) - routed.logits_TE.amin(-1)


REGISTERED: dict[str, dict[str, Any]] = {
    "spread": {"measure": spread_of_logits},
    "weight": {"measure": lambda routed: routed.probs_TE.sum(-1)},
    "experts": {"measure": lambda routed: routed.routing_map_TE.sum(-1)},
    "confidence": {"measure": lambda routed: routed.log_softmax_TE.exp().amax(-1)},
    "busiest": {"derive": lambda sums: sums.tokens_per_expert.max(axis=1).astype(np.float64)},
    "spread_squared": {"derive": lambda sums: sums.means["spread"] ** 2},
}


@torch.no_grad()
@pytest.mark.parametrize("kind", ["ours", "transformers"])
def test_registered_quantities_are_measured_on_every_kind_of_model(
    make_model: Make, padded: tuple[Tensor, Tensor], kind: str
) -> None:
    ids, mask = padded
    model = make_model() if kind == "ours" else tiny_models.build("olmoe")
    routers = [it for name, it in model.named_modules() if name.endswith(("router", "mlp.gate"))]
    logits: list[Tensor] = []
    for router in routers:
        router.register_forward_hook(lambda _, __, output: logits.append(output[0]))
    monitor = RouterMonitor(model)
    added = [Quantity(name=name, help="A.", title="A", **how) for name, how in REGISTERED.items()]
    with registered(*added), monitor.track():
        model(ids, attention_mask=mask)
        names = set(quantity_names())
    profile = monitor.profile()
    assert set(profile.per_layer) == names
    assert len(logits) == len(profile.layers)
    real = slice(None) if kind == "ours" else mask.flatten().bool()  # ours routes no padding
    for layer, of_layer in enumerate(logits):
        rows, values = of_layer[real].tolist(), {k: v[layer] for k, v in profile.per_layer.items()}
        spread = sum(max(row) - min(row) for row in rows) / len(rows)
        best = sum(math.exp(max(row)) / sum(map(math.exp, row)) for row in rows) / len(rows)
        assert values["spread"] == pytest.approx(spread, rel=1e-5)
        assert values["spread_squared"] == pytest.approx(spread**2, rel=1e-5)
        assert values["confidence"] == pytest.approx(best, rel=1e-5)
        assert values["experts"] == profile.top_k
        assert 0.0 < values["weight"] <= 1.0 + 1e-6
        assert values["busiest"] == profile.tokens_per_expert[layer].max()


@torch.no_grad()
def test_blocks_measure_what_is_registered_when_they_start(
    make_model: Make, tokens: Tensor
) -> None:
    model = make_model()
    monitor = RouterMonitor(model)
    with monitor.track():
        model(tokens)
    spread = Quantity(name="spread", help="For a test.", title="S", measure=spread_of_logits)
    with registered(spread), monitor.track():
        model(tokens)
    means = monitor.profile().means
    assert (means["spread"].tokens == tokens.numel()).all()
    assert (means["entropy"].tokens == 2 * tokens.numel()).all()


@torch.no_grad()
def test_sigmoid_scores_of_deepseek_are_normalized(tokens: Tensor) -> None:
    model = tiny_models.build("deepseek_v3")
    monitor = RouterMonitor(model)
    with monitor.track():
        output = model(tokens, output_router_logits=True)
    entropies = []
    for logits in output.router_logits:
        for row in logits.reshape(-1, logits.shape[-1]).tolist():
            scores = [1 / (1 + math.exp(-x)) for x in row]
            shares = [score / sum(scores) for score in scores]
            entropies.append(-sum(share * math.log(share) for share in shares))
    assert monitor.get_stats().entropy == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)
    assert (monitor.profile().tokens_per_expert.sum(axis=1) == tokens.numel() * 4).all()


def test_layers_are_numbered_globally() -> None:
    assert RouterMonitor(tiny_models.build("qwen2_moe-dense-layers")).layers == (2, 4)
    assert RouterMonitor(tiny_models.build("deepseek_v3")).layers == (3, 4, 5)


@pytest.mark.parametrize("name", ["ernie4_5_moe", "hunyuan_v1_moe", "kimi_k2", "qwen3_next"])
def test_routers_of_other_makes_are_found_and_measured(name: str, tokens: Tensor) -> None:
    model = tiny_models.build(name)
    monitor = RouterMonitor(model)
    with torch.no_grad(), monitor.track():
        model(tokens)
    config = tiny_models.config_of(name)
    moe_layers = FAMILIES[name].geometry(config).architecture.moe_layers
    assert monitor.layers == moe_layers
    assert monitor.get_stats().tokens == tokens.numel()


@torch.no_grad()
def test_blocks_add_up_and_nothing_outside_counts(make_model: Make, tokens: Tensor) -> None:
    model = make_model()
    several, single = RouterMonitor(model), RouterMonitor(model)
    model(tokens)
    with several.track():
        model(tokens[:1])
        model(tokens[1:2])
    model(tokens)
    with several.track():
        model(tokens[2:])
    with single.track():
        model(tokens)
    one, other = several.profile(), single.profile()
    assert one.steps == 2
    assert one.tokens_per_expert.tolist() == other.tokens_per_expert.tolist()
    assert one.per_layer["entropy"] == pytest.approx(other.per_layer["entropy"], rel=1e-6)
    several.reset()
    with pytest.raises(DataError, match="no forward pass was tracked yet"):
        several.get_stats()


@torch.no_grad()
def test_dropped_assignments_are_counted(make_model: Make, tokens: Tensor) -> None:
    model = make_model(capacity_factor=0.5)
    monitor = RouterMonitor(model)
    with monitor.track():
        output = model(tokens)
    dropped = [int(info.dropped) for info in output.routing]
    assert sum(dropped) > 0
    assert monitor.profile().dropped.tolist() == dropped
    rates = [lost / (tokens.numel() * 2) for lost in dropped]
    assert monitor.get_stats().drop_rate == pytest.approx(sum(rates) / len(rates))


def test_training_is_watched_without_changing_it(make_model: Make, tokens: Tensor) -> None:
    gradients = []
    for watched in (False, True):
        model = make_model().train()
        monitor = RouterMonitor(model)
        if watched:
            with monitor.track():
                model(tokens, labels=tokens).loss.backward()
            assert monitor.get_stats().tokens == tokens.numel()
        else:
            model(tokens, labels=tokens).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@torch.no_grad()
def test_generation_with_a_cache_counts_each_token_once(tokens: Tensor) -> None:
    model = tiny_models.build("mixtral")
    monitor = RouterMonitor(model)
    mask = torch.ones_like(tokens)
    mask[0, :3] = 0
    with monitor.track():
        model.generate(
            tokens, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0,
            eos_token_id=None,
        )  # fmt: skip
    # Of four new tokens the last is never fed back.
    assert monitor.get_stats().tokens == int(mask.sum()) + 3 * 3


@torch.no_grad()
def test_failed_forward_pass_counts_nothing_and_leaves_no_hooks(
    make_model: Make, tokens: Tensor
) -> None:
    model = make_model()
    monitor = RouterMonitor(model)

    def stop(*_: Any) -> None:
        raise RuntimeError("stopped between the layers")

    handle = model.layers[1].register_forward_hook(stop)
    with pytest.raises(RuntimeError, match="between the layers"), monitor.track():
        model(tokens)
    handle.remove()
    with pytest.raises(DataError, match="no forward pass"):
        monitor.get_stats()
    assert not any(module._forward_hooks for module in model.modules())
    with monitor.track():
        model(tokens)
    assert monitor.get_stats().tokens == tokens.numel()


@torch.no_grad()
def test_part_of_a_model_is_refused(make_model: Make) -> None:
    model = make_model()
    layer = next(m for m in model.modules() if hasattr(m, "router"))
    refusal = pytest.raises(DataError, match=r"every layer on the same tokens.*run the whole")
    with refusal, RouterMonitor(model).track():
        layer(torch.randn(1, 4, 32), None)


def test_gradient_checkpointing_is_refused_in_training(tokens: Tensor) -> None:
    model = tiny_models.build("mixtral").train()
    model.gradient_checkpointing_enable()
    refusal = pytest.raises(
        ConfigError, match=r"counted twice; first call model\.gradient_checkpointing_d"
    )
    with refusal, RouterMonitor(model).track():
        model(tokens)
    model.eval()
    with RouterMonitor(model).track(), torch.no_grad():
        model(tokens)


@pytest.mark.parametrize("model", [nn.Linear(2, 2), tiny_models.build("llama")])
def test_models_without_routers_are_refused(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"no router was found in \w+; give a MoEModel"):
        RouterMonitor(model)


def test_stats_are_plain_numbers_by_name(make_model: Make, tokens: Tensor) -> None:
    monitor = RouterMonitor(make_model())
    with monitor.track(), torch.no_grad():
        monitor._hooks._model(tokens)
    stats = monitor.get_stats().as_dict()
    assert {"load_variance", "drop_rate", "entropy"} <= stats.keys()
    assert all(type(value) in {int, float} for value in stats.values())


def route_certain(logits_TE: Tensor, *, top_k: int) -> Routing:
    probs_TE = logits_TE.softmax(-1)
    return Routing.of_map(probs_TE, probs_TE > 0.3)


@torch.no_grad()
def test_token_without_an_expert_is_a_token(
    make_model: Make, padded: tuple[Tensor, Tensor]
) -> None:
    with registered_router("certain", route_certain, fixed_number=False):
        model = make_model(router_type="certain")
        monitor = RouterMonitor(model)
        with monitor.track():
            output = model(*padded)
    valid = padded[1].bool()
    chosen = [(info.indices[valid] >= 0).sum(-1) for info in output.routing]
    assert any((layer == 0).any() for layer in chosen)
    assert monitor.get_stats().tokens == 16
    means = [float(info.entropy) for info in output.routing]
    assert monitor.profile().per_layer["entropy"] == pytest.approx(means, rel=1e-5)
