"""A model as groups of equal layers with their parts, sizes, parameters and operations.

It knows the description of a model and the shapes of its parameters, not their values, and not
how anything is drawn.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby
from math import prod

import numpy as np

from moe_megatron.config import Architecture, MoEConfig
from moe_megatron.config.checks import clipped
from moe_megatron.drawing.architecture import Block, Part
from moe_megatron.families.moe_model import model_links
from moe_megatron.telemetry.values.expert_load import Float64Array

type Shapes = Mapping[str, tuple[int, ...]]
"""Of the parameters of a `MoEModel`, by name."""

_PARTS = {
    "attention.": "attention",
    "moe.router.": "router",
    "moe.experts.": "experts",
    "moe.shared_": "shared experts",
    "mlp.": "MLP",
}
"""How names begin within a layer, and what they are a part of."""
_NORMS = "norms"
_NAME = re.compile(r"layers\.(?P<layer>\d+)\.(?P<rest>.*)")
_EXPERT = re.compile(r"moe\.experts\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Weights:
    """Parameters of a part."""

    all: int = 0
    active: int = 0
    """Those that one token uses."""
    multiplied: int = 0
    """Of these the ones in matrices that are multiplied by the token's vector."""

    def __add__(self, other: "Weights") -> "Weights":
        return Weights(
            self.all + other.all,
            self.active + other.active,
            self.multiplied + other.multiplied,
        )


type PartWeights = Mapping[tuple[int | None, str], Weights]
"""By layer, from 1, and part; what is outside of layers and parts has None, "embedding", "output"
and "norms"."""


def shapes_of(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of a model whose experts are MLPs, from its mapping table."""
    return {
        block.name: block.shape
        for link in model_links(architecture)
        if link.dtype is None  # else it is remembered, not learned
        for block in link.blocks
    }


def part_weights(architecture: Architecture, shapes: Shapes) -> PartWeights:
    """Parameters of each part; the sums are `MoEModel.num_parameters()` and its active ones.

    All experts of a layer are as large as its first. Layers for multi-token prediction are left
    out.
    """
    found: dict[tuple[int | None, str], Weights] = {}
    first: dict[int, str] = {}
    for name, shape in shapes.items():
        number, part, expert = _place(name)
        if number > architecture.model.num_layers:
            continue
        size = prod(shape)
        weights = Weights(size, size, size if len(shape) == 2 and part != "embedding" else 0)
        if expert is not None:
            if first.setdefault(number, expert) != expert:
                continue
            weights = _of_all(weights, architecture.moe)
        key = (number or None, part)
        found[key] = found.get(key, Weights()) + weights
    if (None, "output") not in found:  # the matrix of the embedding once more
        again = prod(shapes["embed_tokens.weight"])
        found[None, "output"] = Weights(0, 0, again)
    return found


def total_weights(weights: PartWeights) -> Weights:
    """Of the whole model."""
    return sum(weights.values(), Weights())


def blocks_of(
    architecture: Architecture,
    weights: PartWeights,
    loads: Mapping[int, Float64Array],
    *,
    sizes: bool,
    costs: bool,
) -> list[Block]:
    """A model from its embedding to its output; equal layers that follow each other are one block.

    Args:
        architecture: The model.
        weights: Of its parts.
        loads: Load over its fair share of every expert, [E], by the number of the layer.
        sizes: Whether parts say how large they are.
        costs: Whether parts say how many parameters and operations they have.
    """

    def part(layer: int | None, name: str, size: str) -> Part:
        here = weights[layer, name]
        return Part(
            kind=name,
            size=size if sizes else "",
            parameters=short(here.all) if costs else "",
            operations=short(2 * here.multiplied) if costs else "",
        )

    outside = f"{architecture.vocab_size:,} tokens, {architecture.model.hidden_size:,} wide"
    described = _described(architecture)
    layers = [
        (number, [part(number, *it) for it in described.items() if (number, it[0]) in weights])
        for number in range(1, architecture.model.num_layers + 1)
    ]
    middle = []
    for parts, group in groupby(layers, key=lambda it: it[1]):
        numbers = [number for number, _ in group]
        routed = any(it.kind == "experts" for it in parts)
        known = routed and all(it in loads for it in numbers)
        middle.append(
            Block(
                layers=numbers,
                parts=parts,
                experts=(architecture.moe.num_experts or 0) if routed else 0,
                chosen=architecture.moe.top_k,
                loads=np.array([loads[it] for it in numbers]) if known else None,
            )
        )
    ends = [Block(layers=[], parts=[part(None, it, outside)]) for it in ("embedding", "output")]
    return [ends[0], *middle, ends[1]]


def short(number: float) -> str:
    """A number in three digits: 0, 17, 1.31 k, 256 k, 6.92 G."""
    for unit in ("", " k", " M", " G"):
        if abs(number) < 999.5:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g} T"


def _described(architecture: Architecture) -> dict[str, str]:
    """Sizes of the parts of a layer, in the order in which a token meets them."""
    model, moe = architecture.model, architecture.moe
    heads = f"{model.num_attention_heads} heads of {model.attention_head_dim}"
    if latent := model.latent_attention:
        ranks = [f"{it:,}" for it in (latent.q_lora_rank, latent.kv_lora_rank) if it]
        heads = f"{model.num_attention_heads} heads, rank {'/'.join(ranks)}"
    elif model.key_value_heads != model.num_attention_heads:
        heads += f", {model.key_value_heads} of keys"
    return {
        "attention": heads,
        "MLP": f"{model.dense_ffn_size:,} wide",
        "router": f"{clipped(moe.router.name, 16)}, {moe.top_k} of {moe.num_experts}",
        "experts": f"{moe.num_experts}, each {architecture.expert_hidden_size:,} wide",
        "shared experts": f"{moe.shared_expert_hidden_size or 0:,} wide",
    }


def _place(name: str) -> tuple[int, str, str | None]:
    """Layer of a parameter, from 1 and 0 outside of layers, its part, and its expert."""
    if found := _NAME.fullmatch(name):
        part = next((it for words, it in _PARTS.items() if found["rest"].startswith(words)), _NORMS)
        expert = _EXPERT.match(found["rest"])
        return int(found["layer"]) + 1, part, None if expert is None else expert[1]
    if name.startswith(("embed_tokens.", "embed_positions.")):
        return 0, "embedding", None
    return 0, "output" if name.startswith("lm_head") else _NORMS, None


def _of_all(expert: Weights, moe: MoEConfig) -> Weights:
    """Of a layer's experts, by those of one."""
    return Weights(
        expert.all * (moe.num_experts or 0),
        expert.active * moe.top_k,
        expert.multiplied * moe.top_k,
    )
