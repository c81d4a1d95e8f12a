"""Routers in a layer, beside padding, against the formulas of their papers in plain loops.

The twins see lists of numbers, a token at a time, and share nothing with what they are compared to.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from moe_megatron.config import ModelConfig, MoEConfig
from moe_megatron.model.moe_layer import MoELayer
from moe_megatron.routing import find_router
from moe_megatron.routing.quantile import route_quantile

BATCH, SEQUENCE, HIDDEN, EXPERTS = 3, 9, 16, 6
type Row = list[float]


@dataclass(frozen=True)
class Token:
    """One token, with the numbers of its layer."""

    hidden: Row
    id: int
    tensors: dict[str, list[Any]]
    """Parameters of the gate and the state of the router."""
    normal: Row
    """What is drawn for it from a normal distribution, for each expert."""
    uniform: float
    """What is drawn for it between 0 and 1."""
    training: bool

    def times(self, name: str) -> Row:
        """A matrix of the gate times the hidden state."""
        return [dot(row, self.hidden) for row in self.tensors[name]]


def dot(one: Row, two: Row) -> float:
    return sum(x * y for x, y in zip(one, two, strict=True))


def softmax(row: Row) -> Row:
    total = sum(math.exp(it) for it in row)
    return [math.exp(it) / total for it in row]


def best(row: Row, number: int) -> list[int]:
    return sorted(range(len(row)), key=lambda place: -row[place])[:number]


# --- the twins: experts and weights of a token, best first ----------------------------------------

type Chosen = list[tuple[int, float]]


def cosine(it: Token, top_k: int) -> Chosen:
    """s_e = cos(P x, w_e) / tau, and its softmax over all experts (arXiv:2204.09179, 4.1)."""
    projected, (temperature,) = it.times("projection"), it.tensors["temperature"]
    scores = []
    for expert in it.tensors["weight"]:
        lengths = math.sqrt(dot(projected, projected)) * math.sqrt(dot(expert, expert))
        scores.append(dot(projected, expert) / lengths / temperature)
    probs = softmax(scores)
    return [(e, probs[e]) for e in best(probs, top_k)]


def noisy_top_k(it: Token, top_k: int) -> Chosen:
    """Softmax(KeepTopK(x W + N(0, 1) softplus(x V))) (arXiv:1701.06538, equations 3 to 5)."""
    sizes = [math.log(1 + math.exp(size)) for size in it.times("noise")]
    noise = [n * size if it.training else 0.0 for n, size in zip(it.normal, sizes, strict=True)]
    logits = [clean + n for clean, n in zip(it.times("weight"), noise, strict=True)]
    kept = best(logits, top_k)
    return list(zip(kept, softmax([logits[e] for e in kept]), strict=True))


def gshard(it: Token, top_k: int) -> Chosen:
    """Algorithm 1 of arXiv:2006.16668: the second expert is used with the probability 2 g2."""
    probs = softmax(it.times("weight"))
    first, second = best(probs, top_k)
    both = probs[first] + probs[second]
    used = 2 * probs[second] > (it.uniform if it.training else 1.0)
    rest = [(second, probs[second] / both)] if used else []
    return [(first, probs[first] / both), *rest]


def hash_of_id(it: Token, top_k: int) -> Chosen:
    """Experts from h(id) on, up or down (arXiv:2106.04426); h is Lehmer's generator."""
    mixed = 48_271 * (it.id + 1 + 5) % (2**31 - 1)
    expert, down = mixed % EXPERTS, 69_621 * mixed % (2**31 - 1) % 2
    chosen = []
    for _ in range(top_k):
        chosen.append((expert, 1 / top_k))
        expert = (expert + (-1 if down else 1)) % EXPERTS
    return chosen


def quantile(it: Token, top_k: int) -> Chosen:
    """The largest s + b, with s over the sum of the chosen s unless k is 1 (arXiv:2502.15451)."""
    scores = [1 / (1 + math.exp(-logit)) for logit in it.times("weight")]
    biased = [s + b for s, b in zip(scores, it.tensors["bias"], strict=True)]
    kept = best(biased, top_k)
    if top_k == 1:
        return [(e, scores[e]) for e in kept]
    return [(e, scores[e] / sum(scores[other] for other in kept)) for e in kept]


TWINS: dict[str, tuple[Callable[[Token, int], Chosen], dict[str, Any]]] = {
    "cosine": (cosine, {"width": 5}),
    "gshard": (gshard, {"second_expert_threshold": 0.5}),
    "hash": (hash_of_id, {"salt": 5}),
    "noisy_top_k": (noisy_top_k, {}),
    "quantile": (quantile, {}),
}
KS = {"gshard": (2,), "noisy_top_k": (2, 4)}


def layer_with(router: str, options: dict[str, Any], top_k: int) -> MoELayer:
    torch.manual_seed(1)
    moe = MoEConfig(num_experts=EXPERTS, top_k=top_k, router={"name": router, **options})
    layer = MoELayer(ModelConfig(hidden_size=HIDDEN, num_attention_heads=2), moe, EXPERTS, layer=1)
    for parameter in layer.router.drawn():
        torch.nn.init.normal_(parameter, std=0.3)
    for value in layer.router.buffers():
        value.copy_(torch.randn_like(value) / 5)
    return layer


def numbers(layer: MoELayer) -> dict[str, list[Any]]:
    named = [*layer.router.named_parameters(), *layer.router.named_buffers()]
    return {name.split(".")[-1]: value.tolist() for name, value in named}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("router", "top_k"),
    [(name, k) for name in TWINS for k in KS.get(name, (1, 2, 4))],
)
def test_experts_and_weights_are_those_of_the_formula(
    router: str, top_k: int, training: bool
) -> None:
    twin, options = TWINS[router]
    layer = layer_with(router, options, top_k).train(training)
    hidden = torch.randn(BATCH, SEQUENCE, HIDDEN)
    ids = torch.randint(0, 250_000, (BATCH, SEQUENCE))
    valid = torch.ones(BATCH, SEQUENCE, dtype=torch.bool)
    valid[0, 5:] = valid[2, :4] = False
    torch.manual_seed(2)
    _, info = layer(hidden, valid, ids)
    torch.manual_seed(2)
    normal = iter(torch.randn(int(valid.sum()), EXPERTS).tolist())
    torch.manual_seed(2)
    uniform = iter(torch.rand(int(valid.sum())).tolist())
    load = [0] * EXPERTS
    for b in range(BATCH):
        for s in range(SEQUENCE):
            chosen: Chosen = []
            if valid[b, s]:
                token = Token(
                    hidden[b, s].tolist(),
                    int(ids[b, s]),
                    numbers(layer),
                    next(normal),
                    next(uniform),
                    training,
                )
                chosen = twin(token, top_k)
            empty = top_k - len(chosen)
            assert info.indices[b, s].tolist() == [e for e, _ in chosen] + [-1] * empty
            weights = [weight for _, weight in chosen] + [0.0] * empty
            assert info.weights[b, s].tolist() == pytest.approx(weights, rel=1e-4)
            for expert, _ in chosen:
                load[expert] += 1
    assert info.tokens_per_expert.tolist() == load


def test_quantile_gives_the_bias_that_its_part_of_the_tokens_lacks() -> None:
    """Step 2 of arXiv:2502.15451: b_e is the n k / E smallest of p_t - s_te, where p_t is the
    k + 1 largest of s_te + b_e; here less the mean of all experts."""
    top_k, tokens = 2, 300
    logits = torch.randn(tokens + 50, EXPERTS, generator=torch.Generator().manual_seed(3))
    bias = torch.linspace(-0.2, 0.3, EXPERTS)
    padding = torch.arange(tokens + 50) % 7 == 3
    scores = [[1 / (1 + math.exp(-x)) for x in row] for row in logits[~padding].tolist()]
    needed = [
        sorted((s + b for s, b in zip(row, bias.tolist(), strict=True)), reverse=True)[top_k]
        for row in scores
    ]
    part = len(scores) * top_k // EXPERTS
    exact = [
        sorted(p - row[e] for p, row in zip(needed, scores, strict=True))[part - 1]
        for e in range(EXPERTS)
    ]
    expected = [it - sum(exact) / EXPERTS for it in exact]
    routing = route_quantile(logits, top_k=top_k, state={"bias": bias}, padding=padding)
    state = find_router("quantile").state
    assert state is not None
    found = state.updated({"bias": bias}, routing.observed, top_k=top_k, ema=0.0)["bias"]
    assert found.tolist() == pytest.approx(expected, abs=2.5 / 1024)  # a bin's width
    half = state.updated({"bias": bias}, routing.observed, top_k=top_k, ema=0.5)["bias"]
    kept = [(b + it) / 2 for b, it in zip(bias.tolist(), exact, strict=True)]
    expected = [it - sum(kept) / EXPERTS for it in kept]
    assert half.tolist() == pytest.approx(expected, abs=2.5 / 1024)
