"""Makes a Mixture of Experts from a dense model: sparse upcycling (Komatsuzaki, arXiv:2212.05055).

Every expert is a copy of the dense MLP and the router is new, so the model at first computes what
the dense one did, and training makes the experts differ. Finer experts are slices of the MLP, and a
token visits complete sets of slices (virtual groups; He et al., arXiv:2410.07524). This module only
makes links; it reads no weights.
"""

import hashlib
from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from moe_megatron.checkpoint.edit.selection import Model
from moe_megatron.checkpoint.formats.hf_folder import HfFolder
from moe_megatron.config.fields import CHANGES
from moe_megatron.errors import CheckpointError, MappingError
from moe_megatron.families import FAMILIES, Family, Geometry, rope
from moe_megatron.families.links import Block, Link, Noise, Term

AUX_LOSS_COEF = 0.01
"""Weight of the balancing loss in further training, as in the paper."""

_TARGETS = {"llama": "mixtral", "mistral": "mixtral", "qwen2": "qwen2_moe", "qwen3": "qwen3_moe"}
"""Family of an upcycled model by that of the dense one; they differ only in the MLPs."""
_STD = 0.02
_MLP = (".mlp.linear_fc1.weight", ".mlp.linear_fc2.weight")
_LARGEST_SEED = 2**63
_WIDTH = "model.ffn_hidden_size"


@dataclass(frozen=True, kw_only=True, slots=True)
class Upcycling:
    """How to make experts.

    Raises:
        CheckpointError: A number is out of range, or granularity does not divide the others.
    """

    num_experts: int = 8
    """Number of experts in each MoE layer; every slice counts as one."""
    top_k: int = 2
    """Number of experts that each token visits; their weights sum to 1."""
    granularity: int = 1
    """Number of slices of a dense MLP, each of which is an expert; divides num_experts, top_k."""
    noise: float = 0.0
    """Standard deviation of noise added to expert weights; 0 makes bitwise copies."""
    seed: int = 0
    """Seed of routers and noise."""
    layers: tuple[int, ...] | None = None
    """Layers, counted from 0, that get experts; others stay dense (Qwen only). None means all."""

    def __post_init__(self) -> None:
        slices = self.granularity
        if not 2 <= self.top_k <= self.num_experts:
            raise CheckpointError(
                f"upcycling to {self.num_experts} experts with top_k {self.top_k} is not possible: "
                "top_k must be at least 2 (the weight of a single expert is always 1) and at most "
                "the number of experts."
            )
        if slices < 1 or self.num_experts % slices or self.top_k % slices:
            raise CheckpointError(
                f"granularity ({slices}) must divide the number of experts ({self.num_experts}) "
                f"and top_k ({self.top_k}), so that a token can visit all slices of a copy."
            )
        if not 0 <= self.seed < _LARGEST_SEED or not 0 <= self.noise < 1:
            raise CheckpointError(
                f"the seed ({self.seed}) must be at least 0 and below 2^63, and the noise "
                f"({self.noise}) a standard deviation of at least 0 and below 1."
            )


def bytes_of_expert(
    model: Model, wanted: Upcycling, layers: Container[int] | None, item: int
) -> int:
    """What one expert takes in all layers together.

    Args:
        model: The dense model.
        wanted: How to make experts.
        layers: The layers that are imported; None for all.
        item: Bytes of a number.
    """
    numbers = sum(
        prod(link.shape)
        for link in model.links
        if link.key.endswith(_MLP)
        if all(it is None or link.layer in it for it in (layers, wanted.layers))
    )
    return numbers * item // wanted.granularity


def upcycled(model: Model, wanted: Upcycling, folder: HfFolder, dtype: str | None) -> Model:
    """Give experts to a dense model.

    Args:
        model: The dense model.
        wanted: How to make experts.
        folder: The folder with its weights.
        dtype: Type of all weights; None keeps the type of each.

    Raises:
        CheckpointError: The model already has experts, or granularity does not divide its MLP.
        MappingError: No family with experts can represent this model.
    """
    target = _target(model)
    _check(model, wanted)
    config = _config(model, wanted, target)
    geometry = target.geometry(config)
    _check_same(model, target, config)
    dense = {(link.key, link.layer): link for link in model.links}
    router_dtype, std = _router_dtype(dense, folder, dtype), _std(config)
    links = [
        _link(link, wanted, dense, geometry, router_dtype, std) for link in target.links(geometry)
    ]
    return Model(family=target, config=config, geometry=geometry, links=links)


def _target(model: Model) -> Family:
    if model.geometry.experts:
        raise CheckpointError(
            f"this {model.family.name} model already has experts; upcycling starts from a dense "
            f"model ({', '.join(_TARGETS)})."
        )
    return FAMILIES[_TARGETS[model.family.name]]


def _check(model: Model, wanted: Upcycling) -> None:
    geometry = model.geometry
    if geometry.ffn % wanted.granularity:
        raise CheckpointError(
            f"granularity ({wanted.granularity}) must divide the width of the dense MLP "
            f"({geometry.ffn}); choose a divisor of it."
        )
    layers = wanted.layers
    if layers is not None and not (layers and 0 <= min(layers) <= max(layers) < geometry.layers):
        raise CheckpointError(
            f"experts were requested in layers {list(layers)}; give numbers from 0 to "
            f"{geometry.layers - 1}."
        )


def _config(model: Model, wanted: Upcycling, target: Family) -> dict[str, Any]:
    """All values that the dense configuration states or implies, plus those of the experts."""
    changed = dict(model.config)
    for field in model.family.fields:
        value = field.value(model.config)
        if field.hf in {f.hf for f in target.fields}:
            changed[field.key(changed)] = value
        else:
            changed.pop(field.key(changed), None)
    if "rope_theta" not in rope.parameters(changed):
        changed["rope_theta"] = model.family.rope_base
    changed |= {"model_type": target.name, "architectures": [target.architecture]}
    changed = {**target.hf_constants, **changed}
    values = {  # in the target family's terms
        "moe.num_experts": wanted.num_experts,
        "moe.top_k": wanted.top_k,
        "moe.expert_hidden_size": model.geometry.ffn // wanted.granularity,
        "moe.shared_expert_hidden_size": 0,
        "moe.router.pre_softmax": True,
        "moe.aux_loss_coef": AUX_LOSS_COEF,
    }
    for field in target.fields:
        if field.ours in values:
            changed[field.key(changed)] = values[field.ours]
    layers = range(model.geometry.layers)
    pattern = tuple(wanted.layers is None or layer in wanted.layers for layer in layers)
    found = target.pattern.write(pattern)
    if found is None:
        raise MappingError(
            f"an upcycled {model.family.name} becomes a {target.name} model, which has experts in "
            "every layer; do not select layers."
        )
    return changed | found


def _check_same(model: Model, target: Family, config: Mapping[str, Any]) -> None:
    """Check that nothing but the MLPs changes."""
    before = model.geometry.architecture
    after = target.geometry(config).architecture
    names = (name for name in before.field_names(*CHANGES) if name.startswith("model."))
    differ = [it.name for it in before.differences(after, names) if it.name != _WIDTH]
    if differ:
        raise MappingError(
            f"an upcycled {model.family.name} becomes a {target.name} model, which cannot have "
            f"this one's {', '.join(differ)}; upcycle a model without them."
        )


def _router_dtype(
    dense: Mapping[tuple[str, int | None], Link], folder: HfFolder, dtype: str | None
) -> str:
    if dtype is not None:
        return dtype
    norm = dense["decoder.final_layernorm.weight", None]
    return folder.tensors[norm.blocks[0].name].dtype


def _std(config: Mapping[str, Any]) -> float:
    return float(config.get("initializer_range") or _STD)


def _link(
    link: Link,
    wanted: Upcycling,
    dense: Mapping[tuple[str, int | None], Link],
    geometry: Geometry,
    router_dtype: str,
    std: float,
) -> Link:
    stream = _stream_of(link.key, link.layer, link.expert)
    if link.expert is not None:
        part = link.key.rpartition("experts.experts.")[2]
        source = dense["decoder.layers.{layer}.mlp." + part, link.layer]
        number = link.expert % wanted.granularity
        noise = None
        if wanted.noise:
            noise = _noise(link, wanted, stream, wanted.noise)
        return replace(_slice(link, source, number, wanted.granularity), noise=noise)
    if link.key.endswith("mlp.router.weight"):
        noise = replace(_noise(link, wanted, stream, std), repeat=wanted.granularity)
        return replace(link, blocks=(), noise=noise, dtype=router_dtype)
    return link


def _noise(link: Link, wanted: Upcycling, stream: int, std: float) -> Noise:
    rows, columns = link.shape
    return Noise(seed=wanted.seed, stream=stream, std=std, rows=rows, columns=columns)


def _slice(link: Link, source: Link, number: int, slices: int) -> Link:
    """Slice `number` of `slices` equal slices of a dense MLP, along its inner width."""
    if slices == 1:
        return replace(link, blocks=source.blocks)
    if link.chunks == 2:  # gate and up: the rows are the inner width
        blocks = tuple(_rows(block, number, slices) for block in source.blocks)
        return replace(link, blocks=blocks)
    width = link.shape[1]
    blocks = tuple(replace(block, columns=(number * width, width)) for block in source.blocks)
    # The combine weights of all `slices` slices sum to 1, so each output is scaled by `slices`.
    return replace(link, blocks=blocks, terms=(Term(weight=float(slices), blocks=blocks),))


def _rows(block: Block, number: int, slices: int) -> Block:
    rows = block.rows // slices
    return replace(block, start=block.start + number * rows, rows=rows)


def _stream_of(*names: object) -> int:
    """The random stream of a matrix, derived from its key, layer and expert."""
    digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
    return int.from_bytes(digest)
