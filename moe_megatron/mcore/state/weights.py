"""Weights between a plain `MoEModel` and Megatron's model chunks, under any parallel layout.

Each Megatron parameter is one or several pieces: a view into the local tensor, and the matching
view into a whole tensor under `MoEModel`'s name. Copying along the pieces in one direction loads a
model, in the other it collects one. Names of both layer implementations are known: local
(SequentialMLP) and Transformer Engine (grouped experts, norms fused into the next linear layer).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import mpu
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from moe_megatron.errors import MappingError

WeightMap = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a local parameter and its place in a whole tensor."""

    name: str
    """Parameter name in `MoEModel`."""
    local: Tensor
    """View into the local parameter."""
    whole: Callable[[Tensor], Tensor]
    """The view of the same shape into the whole tensor."""
    primary: bool
    """Whether this rank is the one of its replicas that speaks for them."""


@dataclass(frozen=True, slots=True)
class _Split:
    """How one parameter is spread over its tensor parallel group."""

    rank: int
    size: int

    def rows(self, whole: Tensor, local_rows: int) -> Tensor:
        return whole.narrow(0, self.rank * local_rows, local_rows)

    def along(self, dim: int, local_size: int) -> Callable[[Tensor], Tensor]:
        return lambda whole: whole.narrow(dim, self.rank * local_size, local_size)


_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_EXPERT = re.compile(r"local_experts\.(\d+)\.(linear_fc[12])\.(weight|bias)")
_GROUPED_EXPERT = re.compile(r"(linear_fc[12])\.(weight|bias)(\d+)")
_NORMS = {
    "input_layernorm": "input_norm",
    "pre_mlp_layernorm": "mlp_norm",
    "self_attention.q_layernorm": "attention.q_norm",
    "self_attention.k_layernorm": "attention.k_norm",
    "self_attention.linear_qkv.layer_norm": "input_norm",
    "mlp.linear_fc1.layer_norm": "mlp_norm",
    "mlp.router": "moe.router",
}


def load_weights(model: list[Any], weights: Mapping[str, Tensor]) -> None:
    """Copy whole weights into the local parameters of this rank.

    Args:
        model: Megatron's model chunks, wrapped or not.
        weights: Every parameter of the `MoEModel`, by name.

    Raises:
        MappingError: A parameter has no counterpart, or another shape.
    """
    with torch.no_grad():
        for piece in pieces_of(model):
            if piece.name not in weights:
                raise MappingError(
                    f"the model to load from lacks {piece.name}; build both from one configuration."
                )
            try:
                piece.local.copy_(piece.whole(weights[piece.name]))
            except RuntimeError as error:
                raise MappingError(
                    f"{piece.name} has shape {list(weights[piece.name].shape)}, which does not "
                    f"hold this rank's {list(piece.local.shape)}; build both models from one "
                    "configuration."
                ) from error


def collect_weights(model: list[Any], shapes: Mapping[str, torch.Size]) -> WeightMap:
    """Bring the whole weights together on every rank; all ranks must call it.

    Args:
        model: Megatron's model chunks, wrapped or not.
        shapes: Shape of every parameter of the `MoEModel`, in the same order on all ranks.

    Returns:
        float32 tensors on the CPU, by name.
    """
    device = next(model[0].parameters()).device
    pieces: dict[str, list[Piece]] = {}
    for piece in pieces_of(model):
        pieces.setdefault(piece.name, []).append(piece)
    weights: WeightMap = {}
    with torch.no_grad():
        for name, shape in shapes.items():
            whole = torch.zeros(shape, dtype=torch.float32, device=device)
            for piece in pieces.get(name, ()):
                if piece.primary:
                    piece.whole(whole).copy_(piece.local)
            dist.all_reduce(whole)
            weights[name] = whole.cpu()
    return weights


def pieces_of(model: list[Any]) -> Iterator[Piece]:
    """Every piece of every parameter of the chunks.

    Raises:
        MappingError: A parameter is of a kind that `MoEModel` has not.
    """
    for chunk in model:
        network = _unwrap(chunk)
        for name, parameter in network.named_parameters():
            yield from _Describer(network).pieces(name, parameter)


class _Describer:
    """Finds the pieces of the parameters of one chunk."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self._config: TransformerConfig = network.config

    def pieces(self, name: str, parameter: Tensor) -> Iterator[Piece]:
        local = parameter.data
        match = _LAYER.fullmatch(name)
        if match is None:
            yield self._outer(name, local)
            return
        layer = self._network.decoder.layers[int(match[1])]
        prefix, rest = f"layers.{layer.layer_number - 1}", match[2]
        if rest.startswith("mlp.experts."):
            yield from self._expert(prefix, rest.removeprefix("mlp.experts."), local)
        elif rest.startswith("self_attention.linear_qkv.") and ".layer_norm" not in rest:
            yield from self._attention(prefix, rest.rpartition(".")[2], local)
        elif rest.startswith("self_attention.linear_proj."):
            target = f"{prefix}.attention.o_proj.{rest.rpartition('.')[2]}"
            yield self._row_parallel(target, local, _tensor_split())
        elif (norm := _norm_name(rest)) is not None:
            yield self._norm(f"{prefix}.{norm}", parameter)
        elif rest == "mlp.shared_experts.gate_weight":
            target = f"{prefix}.moe.shared_gate.weight"
            yield Piece(target, local, lambda whole: whole, _first_of_replicas())
        elif rest.startswith(("mlp.linear_fc", "mlp.shared_experts.linear_fc")):
            where = "moe.shared_expert" if "shared_experts" in rest else "mlp"
            linear, kind = rest.split(".")[-2:]
            target = f"{prefix}.{where}"
            yield from self._feed_forward(target, linear, kind, local, _tensor_split(), False)
        else:
            raise MappingError(f"MoEModel has no counterpart of Megatron's parameter {name}.")

    def _norm(self, target: str, parameter: Tensor) -> Piece:
        local = parameter.data
        if not getattr(parameter, "tensor_model_parallel", False):
            return Piece(target, local, lambda whole: whole, _first_of_replicas())
        primary = _first_of_replicas(across_tensor_parallel=False)  # spans the heads of all ranks
        return Piece(target, local, _tensor_split().along(0, local.shape[0]), primary)

    def _outer(self, name: str, local: Tensor) -> Piece:
        if name in {"embedding.word_embeddings.weight", "output_layer.weight"}:
            untied = not self._network.share_embeddings_and_output_weights
            head = untied and name.startswith("output_layer")
            return _vocabulary("lm_head.weight" if head else "embed_tokens.weight", local)
        if name == "output_layer.bias":
            return _vocabulary("lm_head_bias", local)
        if name.startswith("embedding.position_embeddings."):
            return Piece("embed_positions.weight", local, lambda w: w, _first_of_replicas())
        if name.startswith("decoder.final_layernorm."):
            target = f"final_norm.{name.rpartition('.')[2]}"
            return Piece(target, local, lambda whole: whole, _first_of_replicas())
        raise MappingError(f"MoEModel has no counterpart of Megatron's parameter {name}.")

    def _attention(self, prefix: str, kind: str, local: Tensor) -> Iterator[Piece]:
        """`linear_qkv` holds, group by group: the queries of the group, its key, its value."""
        config, split = self._config, _tensor_split()
        head = config.kv_channels
        groups = config.num_query_groups // split.size
        queries = config.num_attention_heads // config.num_query_groups
        blocks = local.view(groups, queries + 2, head, *local.shape[1:])
        spans = {"q": (0, queries), "k": (queries, 1), "v": (queries + 1, 1)}
        for letter, (start, count) in spans.items():
            yield Piece(
                f"{prefix}.attention.{letter}_proj.{kind}",
                blocks[:, start : start + count],
                _group_view(split, groups, count, head),
                _first_of_replicas(across_tensor_parallel=False),
            )

    def _expert(self, prefix: str, rest: str, local: Tensor) -> Iterator[Piece]:
        if match := _EXPERT.fullmatch(rest):
            index, linear, kind = int(match[1]), match[2], match[3]
        elif match := _GROUPED_EXPERT.fullmatch(rest):
            linear, kind, index = match[1], match[2], int(match[3])
        else:
            raise MappingError(f"MoEModel has no counterpart of Megatron's expert tensor {rest}.")
        per_rank = self._config.num_moe_experts // mpu.get_expert_model_parallel_world_size()
        expert = mpu.get_expert_model_parallel_rank() * per_rank + index
        target = f"{prefix}.moe.experts.{expert}"
        yield from self._feed_forward(target, linear, kind, local, _expert_split(), True)

    def _feed_forward(
        self, target: str, linear: str, kind: str, local: Tensor, split: _Split, expert: bool
    ) -> Iterator[Piece]:
        if linear == "linear_fc2":
            yield self._row_parallel(f"{target}.down_proj.{kind}", local, split, expert)
            return
        names = ("gate_proj", "up_proj") if self._config.gated_linear_unit else ("up_proj",)
        rows = local.shape[0] // len(names)
        for part, name in enumerate(names):
            yield Piece(
                f"{target}.{name}.{kind}",
                local.narrow(0, part * rows, rows),
                split.along(0, rows),
                _first_of_replicas(across_tensor_parallel=False, expert=expert),
            )

    def _row_parallel(
        self, target: str, local: Tensor, split: _Split, expert: bool = False
    ) -> Piece:
        if local.dim() == 1:  # a bias is added once, after the partial sums
            return Piece(target, local, lambda whole: whole, _first_of_replicas(expert=expert))
        primary = _first_of_replicas(across_tensor_parallel=False, expert=expert)
        return Piece(target, local, split.along(1, local.shape[1]), primary)


def _norm_name(rest: str) -> str | None:
    owner, _, kind = rest.rpartition(".")
    if kind in {"layer_norm_weight", "layer_norm_bias"}:
        owner, kind = f"{owner}.layer_norm", kind.removeprefix("layer_norm_")
    return f"{_NORMS[owner]}.{kind}" if owner in _NORMS else None


def _vocabulary(name: str, local: Tensor) -> Piece:
    """Megatron pads the vocabulary; the rows beyond the tokenizer's stay as they are."""
    split = _tensor_split()
    start = split.rank * local.shape[0]
    size = _vocabulary_size(local, split)
    rows = max(0, min(local.shape[0], size - start))
    primary = _first_of_replicas(across_tensor_parallel=False)
    if name == "embed_tokens.weight" and not mpu.is_pipeline_first_stage():
        primary = False  # the last stage's copy of a tied embedding
    return Piece(name, local[:rows], lambda whole: whole.narrow(0, min(start, size), rows), primary)


def _vocabulary_size(local: Tensor, split: _Split) -> int:
    from megatron.training import get_args

    return min(int(get_args().vocab_size), local.shape[0] * split.size)


def _group_view(split: _Split, groups: int, count: int, head: int) -> Callable[[Tensor], Tensor]:
    def view(whole: Tensor) -> Tensor:
        rows = split.rows(whole, groups * count * head)
        return rows.view(groups, count, head, *whole.shape[1:])

    return view


def _tensor_split() -> _Split:
    return _Split(mpu.get_tensor_model_parallel_rank(), mpu.get_tensor_model_parallel_world_size())


def _expert_split() -> _Split:
    return _Split(
        mpu.get_expert_tensor_parallel_rank(), mpu.get_expert_tensor_parallel_world_size()
    )


def _first_of_replicas(*, across_tensor_parallel: bool = True, expert: bool = False) -> bool:
    """Whether this rank is the first of those that hold the same values."""
    data_rank = (
        mpu.get_expert_data_parallel_rank()
        if expert
        else mpu.get_data_parallel_rank(with_context_parallel=True)
    )
    split = _expert_split() if expert else _tensor_split()
    return data_rank == 0 and (split.rank == 0 or not across_tensor_parallel)


def _unwrap(chunk: Any) -> Any:
    while hasattr(chunk, "module"):
        chunk = chunk.module
    return chunk
