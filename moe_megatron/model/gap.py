"""The causal gap: what a router that looks at later tokens in training loses when it is used.

    gap = causal_gap(model, input_ids)
    gap.training_loss, gap.inference_loss, gap.difference, gap.changed

Experts that choose tokens, balanced assignments, full experts and noise route a token in training
by what else is in the batch, or by chance; text that is generated token by token is routed without.
The same weights and tokens are measured in both ways, with all else as at inference. It does not
train, and leaves model and random numbers as they were. Shapes: B sequences, S tokens of each,
L layers with experts, E experts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from moe_megatron.config.arguments import shown
from moe_megatron.errors import ConfigError
from moe_megatron.model import inputs
from moe_megatron.model.attention import KeyValueCache
from moe_megatron.model.evaluating import evaluating
from moe_megatron.model.language_model import LanguageModel
from moe_megatron.model.outputs import RoutingInfo
from moe_megatron.model.router import Router


@dataclass(frozen=True, kw_only=True, slots=True)
class CausalGap:
    """The loss of a model with routing as in training, and with routing as at inference."""

    training_loss: float
    """Mean cross-entropy of the next token, in nats, routed as in training."""
    inference_loss: float
    """The same of the same tokens, each routed without a look at later ones."""
    changed: float
    """Share of tokens with other experts at inference than in training, the mean over layers."""
    changed_by_layer: dict[int, float]
    """The same share by global layer number, from 1. Layers see what earlier ones made of it."""

    @property
    def difference(self) -> float:
        """inference_loss - training_loss, in nats; positive where inference is worse."""
        return self.inference_loss - self.training_loss


def causal_gap(
    model: LanguageModel,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    seed: int = 0,
) -> CausalGap:
    """Measure the causal gap of a model on a batch.

    Routed as in training, tokens of the whole batch compete for experts, so give one like a
    micro-batch of training. Capacity, noise, jitter and what routers do in training are on, dropout
    is off. Routed as at inference, each token has what came before it alone: routers are in
    evaluation mode, and no expert is ever full, as a single token fills none.

    Args:
        model: A `MoEModel` with experts.
        input_ids: int64 [B, S], S at least 2.
        attention_mask: [B, S], 1 for a token and 0 for padding; None if there is none.
        seed: Of what routers draw in training.

    Raises:
        ConfigError: The model has no experts, or is not a `MoEModel`.
        DataError: Shapes or ids are wrong.
    """
    routers = _routers(model)
    inputs.check_tokens(input_ids, model.vocab_size, model._max_length)
    valid = inputs.valid_tokens(attention_mask, input_ids)
    batched = any(it.route.router.looks_at_batch(training=False) for it in routers)
    with torch.no_grad(), evaluating(model):
        with _training(routers, seed):
            trained = _run(model, input_ids, valid)
        with _without_capacity(routers):
            used = (_token_by_token if batched else _run)(model, input_ids, valid)
    tokens = torch.ones_like(input_ids).bool() if valid is None else valid
    shares = {
        layer: _share(one, two, tokens)
        for (layer, one), two in zip(trained[1].items(), used[1].values(), strict=True)
    }
    return CausalGap(
        training_loss=_loss(trained[0], input_ids, valid),
        inference_loss=_loss(used[0], input_ids, valid),
        changed=sum(shares.values()) / len(shares),
        changed_by_layer=shares,
    )


type _Pass = tuple[Tensor, dict[int, Tensor]]
"""Logits [B, S, vocabulary], and by layer which experts computed each token, bool [B, S, E]."""


def _routers(model: LanguageModel) -> list[Router]:
    if not isinstance(model, LanguageModel):
        raise ConfigError(
            f"the causal gap is measured of a MoEModel, not of {shown(model)} "
            f"({type(model).__name__}); load one with MoEModel.from_pretrained."
        )
    if found := [it for it in model.modules() if isinstance(it, Router)]:
        return found
    raise ConfigError(
        "a dense model routes nothing, so it has no causal gap; give a MoEModel with num_experts."
    )


def _run(model: LanguageModel, input_ids: Tensor, valid: Tensor | None) -> _Pass:
    """All tokens at once."""
    hidden, routing = model._decode(input_ids, valid, None)
    return model._project(hidden), _experts(routing)


def _token_by_token(model: LanguageModel, input_ids: Tensor, valid: Tensor | None) -> _Pass:
    """One sequence after the other, a token at a time, as it would be generated."""
    rows = []
    for row in range(len(input_ids)):
        cache, steps = KeyValueCache(), []
        own = None if valid is None else valid[row : row + 1]
        for place in range(input_ids.shape[1]):
            seen = None if own is None else own[:, : place + 1]
            hidden, routing = model._decode(
                input_ids[row : row + 1, place : place + 1], seen, cache
            )
            steps.append((model._project(hidden), _experts(routing)))
        rows.append(_joined(steps, dim=1))
    return _joined(rows, dim=0)


def _joined(parts: list[_Pass], dim: int) -> _Pass:
    layers = parts[0][1]
    return (
        torch.cat([logits for logits, _ in parts], dim=dim),
        {layer: torch.cat([maps[layer] for _, maps in parts], dim=dim) for layer in layers},
    )


def _experts(routing: tuple[RoutingInfo, ...]) -> dict[int, Tensor]:
    """By layer, which experts computed each token, bool [B, S, E]: dropped ones did not."""
    found = {}
    for info in routing:
        computed = (info.indices >= 0) & (info.weights != 0)
        counts = torch.zeros_like(info.scores).scatter_add(
            -1, info.indices.clamp(min=0), computed.float()
        )
        found[info.layer] = counts > 0
    return found


def _share(one_BSE: Tensor, two_BSE: Tensor, tokens_BS: Tensor) -> float:
    """The share of tokens whose experts differ."""
    return float((one_BSE != two_BSE).any(dim=-1)[tokens_BS].float().mean())


def _loss(logits: Tensor, input_ids: Tensor, valid: Tensor | None) -> float:
    return float(inputs.next_token_loss(logits, input_ids, valid))


@contextmanager
def _training(routers: list[Router], seed: int) -> Iterator[None]:
    """Routers alone in training mode, with random numbers of their own."""
    devices = {it.weight.device for it in routers if it.weight.device.type == "cuda"}
    with torch.random.fork_rng(devices=list(devices)):
        torch.manual_seed(seed)
        for router in routers:
            router.train()
        try:
            yield
        finally:
            for router in routers:
                router.eval()


@contextmanager
def _without_capacity(routers: list[Router]) -> Iterator[None]:
    configs = [router.config for router in routers]
    for router, config in zip(routers, configs, strict=True):
        router.config = replace(config, capacity_factor=None)
    try:
        yield
    finally:
        for router, config in zip(routers, configs, strict=True):
            router.config = config
