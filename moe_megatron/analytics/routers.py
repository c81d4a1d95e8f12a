"""Finds the routers of a model and reports their decisions, for our models and others.

Two kinds are supported. The MoE layers of `MoEModel` return a `RoutingInfo`. A transformers model
names its router class itself (the recorder of "router_logits"), and that class returns logits,
weights and chosen experts. Both become a `Decision`. Nothing is stored here: listeners do that.

The tensors' own methods are enough, so torch is not imported.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moe_megatron.analytics.layer_rows import row_of
from moe_megatron.analytics.routed import Routed
from moe_megatron.config.arguments import shown
from moe_megatron.errors import ConfigError
from moe_megatron.families import FAMILIES, Family
from moe_megatron.telemetry.values.router_digest import router_digests

if TYPE_CHECKING:
    from torch import Tensor, nn

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|block)\.(\d+)\.")
_EPSILON = 1e-20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decision:
    """What one router decided in one forward pass, on the router's device.

    Attributes:
        layer: global layer number, from 1.
        indices: int64 [batch, seq, top_k], chosen experts, best first; -1 for padding.
        scores: float32 [batch, seq, experts], router distribution; 0 for padding.
        routed: what the router did with the tokens, without padding and dropped assignments.
    """

    layer: int
    indices: "Tensor"
    scores: "Tensor"
    routed: Routed


Listener = Callable[[Decision], None]


@dataclass(frozen=True, slots=True)
class RouterShape:
    """Size of a model's routing: layers with a router, experts in each, experts per token."""

    layers: tuple[int, ...]
    num_experts: int
    top_k: int


def _score_function(family: Family) -> str:
    """The function that turns logits into scores; softmax unless the family specifies another."""
    return str(family.constants.get("moe.router.score_function", "softmax"))


def _experts_of(router: Any) -> int:
    """Experts of a router of transformers, most of which are the gate's matrix themselves."""
    weight = getattr(router, "weight", None)
    return int(router.num_experts if weight is None else weight.shape[0])


class RouterHooks:
    """Access to the routers of one model.

    Args:
        model: a `MoEModel`, or a transformers model that names its router class.

    Raises:
        ConfigError: no router is found, or layers have different numbers of experts.
    """

    def __init__(self, model: "nn.Module") -> None:
        if isinstance(model, type) or not hasattr(model, "named_modules"):
            raise ConfigError(
                f"a model is needed, not {shown(model)} ({type(model).__name__}); give a MoEModel, "
                "or a model of transformers."
            )
        self._model = model
        self._ours = _find_own(model)
        self._theirs = {} if self._ours else _find_foreign(model)
        if not self._ours and not self._theirs:
            raise ConfigError(
                f"no router was found in {type(model).__name__}; give a MoEModel with experts, or "
                "a decoder-only MoE model of transformers (Mixtral, OLMoE, Qwen2-MoE, Qwen3-MoE "
                "and others that record router logits)."
            )
        family = getattr(getattr(model, "config", None), "model_type", None)
        known = FAMILIES.get(str(family))
        self._sigmoid = known is not None and _score_function(known) == "sigmoid"
        self._batch: tuple[int, int] | None = None
        self._valid: Tensor | None = None
        self.shape = self._find_shape()

    def _find_shape(self) -> RouterShape:
        shapes = set()
        for layer in self._ours.values():
            shapes.add((layer.experts.num_experts, layer.config.top_k))
        for router in self._theirs.values():
            shapes.add((_experts_of(router), router.top_k))
        if len(shapes) > 1:
            raise ConfigError(
                "all layers must have the same number of experts and the same top_k; found "
                + ", ".join(f"{experts} with top {k}" for experts, k in sorted(shapes))
            )
        num_experts, top_k = shapes.pop()
        layers = tuple(sorted(self._ours or self._theirs))
        return RouterShape(layers, int(num_experts), int(top_k))

    def digests(self) -> dict[int, str]:
        """The digest of each layer's router, by its number; without those that have none."""
        routers = self._theirs or {layer: it.router for layer, it in self._ours.items()}
        weights = ((layer, getattr(it, "weight", None)) for layer, it in routers.items())
        return router_digests(weights, self.shape.num_experts)

    def gate(self, layer: int) -> "tuple[nn.Module, Callable[[Tensor], Tensor]]":
        """The module that a layer's tokens enter as [..., hidden], and its function to logits.

        Raises:
            ConfigError: the layer has no router.
        """
        row_of(layer, self.shape.layers)
        if self._ours:
            router = self._ours[layer].router
            return router, router.logits
        theirs = self._theirs[layer]
        return theirs, lambda hidden: theirs(hidden)[0]

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[None]:
        """Calls `listener` with every decision that routers make inside the block.

        Raises:
            ConfigError: the model recomputes activations, so that layers run twice.
        """
        recomputes = any(getattr(m, "gradient_checkpointing", False) for m in self._model.modules())
        if recomputes and self._model.training:
            raise ConfigError(
                "with gradient checkpointing layers run twice and would be counted twice; first "
                "call model.gradient_checkpointing_disable() or model.eval()."
            )
        handles = []
        try:
            for module in self._ours.values():
                handles += _hook_own(module, listener)
            if self._theirs:
                before = self._model.register_forward_pre_hook(self._note_batch, with_kwargs=True)
                after = self._model.register_forward_hook(self._forget_batch, always_call=True)
                handles += [before, after]
            for layer, module in self._theirs.items():
                hook = self._foreign_hook(layer, listener)
                handles.append(module.register_forward_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._forget_batch()

    def _note_batch(self, module: "nn.Module", args: Any, kwargs: Mapping[str, Any]) -> None:
        """Remembers the shape and the padding of a batch, which routers are not given."""
        given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        tokens = given.get("input_ids")
        tokens = given.get("inputs_embeds") if tokens is None else tokens
        mask = given.get("attention_mask")
        self._forget_batch()
        if tokens is None:
            return
        self._batch = (tokens.shape[0], tokens.shape[1])
        if mask is not None and mask.ndim == 2:
            # With a cache the mask also covers earlier tokens; those of this pass come last.
            self._valid = mask[:, -tokens.shape[1] :].bool()

    def _forget_batch(self, *_: Any) -> None:
        self._batch = self._valid = None

    def _foreign_hook(self, layer: int, listener: Listener) -> Callable[..., None]:
        def hook(module: "nn.Module", args: Any, output: tuple["Tensor", ...]) -> None:
            logits, weights, indices = (part.detach() for part in output[:3])
            logits = logits.float()
            scores = logits.sigmoid() if self._sigmoid else logits.softmax(-1)
            if self._sigmoid:
                scores = scores / (scores.sum(-1, keepdim=True) + _EPSILON)
            batch = self._batch or (1, logits.shape[0])
            parts = logits, scores, weights, indices
            if self._valid is not None:
                flat = self._valid.reshape(-1).to(logits.device)
                parts = logits[flat], scores[flat], weights[flat], indices[flat]
                indices = indices.masked_fill(~flat[:, None], -1)
                scores = scores * flat[:, None]
            listener(
                Decision(
                    layer=layer,
                    indices=indices.reshape(*batch, -1),
                    scores=scores.reshape(*batch, -1),
                    routed=Routed.of_indices(*parts),
                )
            )

        return hook


def _hook_own(layer: Any, listener: Listener) -> list[Any]:
    """Hooks on a layer and on its router, which sees the logits; returns their handles."""
    seen: dict[str, Any] = {}

    def keep(module: "nn.Module", args: Any, output: tuple["Tensor", Any]) -> None:
        seen["logits_TE"], seen["routing"] = output

    def report(module: "nn.Module", args: Any, output: tuple["Tensor", Any]) -> None:
        info = output[1]
        logits_TE, routing = seen.pop("logits_TE").detach(), seen.pop("routing")
        listener(
            Decision(
                layer=info.layer,
                indices=info.indices,
                scores=info.scores,
                routed=Routed(
                    top_k=layer.config.top_k,
                    logits_TE=logits_TE.float(),
                    scores_TE=layer.router.route.distribution(logits_TE),
                    probs_TE=routing.probs.detach(),
                    routing_map_TE=routing.routing_map,
                ),
            )
        )

    return [layer.router.register_forward_hook(keep), layer.register_forward_hook(report)]


def _find_own(model: "nn.Module") -> dict[int, Any]:
    """The layers of a `MoEModel` that return a `RoutingInfo`, by global layer number."""
    modules: Iterator[Any] = iter(model.modules())
    parts = ("router", "experts", "layer")
    return {m.layer: m for m in modules if all(hasattr(m, part) for part in parts)}


def _find_foreign(model: "nn.Module") -> dict[int, Any]:
    """Routers of the class that the model records router logits from, by global layer number."""
    recorders = getattr(model, "_can_record_outputs", None) or {}
    kind = getattr(recorders.get("router_logits"), "target_class", None)
    found = {}
    for name, module in model.named_modules():
        if kind is not None and isinstance(module, kind) and (match := _LAYER.search(name)):
            found[int(match[1]) + 1] = module
    return found
