"""Puts the adapters of a run on a model, before Megatron wraps it.

It decides which tensors there are, which of them experts share, and which ranks add up whose
gradients. What is frozen is decided elsewhere (`tuning/freezing.py`).
"""

from collections.abc import Iterator
from typing import Any

from megatron.core import parallel_state

from moe_megatron.config.adapter import MAGNITUDE, A, AdapterConfig, B, matrices_in_words
from moe_megatron.config.parameter_roles import ParameterPlace
from moe_megatron.errors import ConfigError
from moe_megatron.mcore import world
from moe_megatron.mcore.tuning.adapters.adaptable import Matrix, matrices
from moe_megatron.mcore.tuning.adapters.adapter_tensors import AdapterTensors, Layout, tensors_at
from moe_megatron.mcore.tuning.adapters.update import GroupedUpdates, LowRankUpdate


def attach(chunks: list[Any], config: AdapterConfig, seed: int) -> list[Any]:
    """Add adapters that change nothing yet; every rank must call it.

    Args:
        chunks: Megatron's model chunks of this rank, before DDP wraps them.
        config: Which matrices have adapters.
        seed: Seed of the run, on which the first A depend, whatever the layout.

    Raises:
        ConfigError: A selector names no matrix, a rank is too large for one, or experts cannot
            share under this layout.
    """
    found = [(chunk, matrix) for chunk in chunks for matrix in matrices([chunk])]
    _check_selectors(config, [matrix.place for _, matrix in found])
    grouped: dict[int, tuple[Any, dict[int, LowRankUpdate]]] = {}
    refused = ""
    for chunk, matrix in found:
        rank = config.rank_of(matrix.place)
        if rank is None:
            continue
        refused = refused or _problem(config, matrix)
        if refused:
            break
        update = _update(chunk, matrix, config, rank, seed)
        if matrix.number is None:
            matrix.layer.register_forward_hook(update)
        else:
            grouped.setdefault(id(matrix.layer), (matrix.layer, {}))[1][matrix.number] = update
    if refusals := [it for it in world.gather_texts(refused) if it]:
        raise ConfigError(refusals[0])
    for layer, updates in grouped.values():
        layer.register_forward_hook(GroupedUpdates(updates))
    return chunks


def updates_of(chunks: list[Any]) -> Iterator[LowRankUpdate]:
    """The adapters of this rank's matrices."""
    for layer in (it for chunk in chunks for it in chunk.modules()):
        for hook in layer._forward_hooks.values():
            if isinstance(hook, LowRankUpdate):
                yield hook
            elif isinstance(hook, GroupedUpdates):
                yield from hook.updates.values()


def start_magnitudes(chunks: list[Any], *, anew: bool) -> None:
    """Make the norms that adapters train those of the weights as they are.

    Args:
        chunks: Megatron's model chunks of this rank, not wrapped; all ranks call it.
        anew: Also where they have begun already.
    """
    for update in updates_of(chunks):
        if update.has_magnitude:
            update.start_magnitude(anew=anew)


def _update(
    chunk: Any, matrix: Matrix, config: AdapterConfig, rank: int, seed: int
) -> LowRankUpdate:
    homes: dict[str, AdapterTensors] = {}
    for part in (A, B, MAGNITUDE) if config.magnitude else (A, B):
        name = config.tensor_name(matrix.place.name, part)
        place = name.rpartition(".")[0]
        homes[place] = home = tensors_at(chunk, place)
        if part in home.layouts:  # another expert has brought it
            continue
        shared = matrix.of_expert and name != _own_name(matrix, part)
        layout = _layout(matrix, name, part, rank, shared=shared)
        home.add(
            layout,
            like=matrix.weight,
            seed=seed,
            allreduce=shared or getattr(matrix.weight, "allreduce", True),
            sequence_parallel=_gradients_are_parts(matrix, layout, shared=shared),
        )
    return LowRankUpdate(matrix, list(homes.values()), config.scale(rank), config.dropout)


def _own_name(matrix: Matrix, part: str) -> str:
    return f"{matrix.place.name.removesuffix('weight')}{part}"


def _layout(matrix: Matrix, name: str, part: str, rank: int, *, shared: bool) -> Layout:
    shape = {
        A: (rank, matrix.inputs),
        B: (matrix.outputs, rank),
        MAGNITUDE: (matrix.outputs,),
    }[part]
    axis = {"rows": None if part == A else 0, "columns": 1 if part == A else None, None: None}
    group = parallel_state.get_tensor_model_parallel_group() if shared else matrix.group
    return Layout(
        name=name,
        shape=shape,
        axis=axis[matrix.split] if matrix.parts > 1 else None,
        halves=matrix.halves and part != A and matrix.parts > 1,
        group=group,
        of_expert=matrix.of_expert and not shared,
    )


def _gradients_are_parts(matrix: Matrix, layout: Layout, *, shared: bool) -> bool:
    """Whether ranks of tensor parallelism each know a part of the gradient of a whole tensor.

    Each then has a part of the sequence; Megatron sums what they know after the backward pass.
    """
    if not matrix.config.sequence_parallel or layout.axis is not None:
        return False
    if shared:
        return matrix.parts == 1
    return matrix.exchanges or matrix.split is None


def _problem(config: AdapterConfig, matrix: Matrix) -> str:
    """What speaks against an adapter, if anything does."""
    if problem := config.too_large(matrix.place, matrix.outputs, matrix.inputs):
        return problem
    tensor = parallel_state.get_tensor_model_parallel_world_size()
    if matrix.of_expert and config.experts != "own" and matrix.parts not in (1, tensor):
        return (
            f"adapter.experts '{config.experts}' needs parallel.expert_tensor_parallel_size 1 or "
            f"{tensor}, as tensor_parallel_size is, not {matrix.parts}; or set adapter.experts to "
            "own."
        )
    return ""


def _check_selectors(config: AdapterConfig, places: list[ParameterPlace]) -> None:
    """Every selector must name a matrix on some rank."""
    selectors = [*config.selectors()]
    found = "".join(str(int(any(map(it.matches, places)))) for _, it in selectors)
    adapted = str(int(any(config.rank_of(it) for it in places)))
    everywhere = world.gather_texts(found + adapted)
    for number, (field, selector) in enumerate(selectors):
        if all(rank[number] == "0" for rank in everywhere):
            raise ConfigError(config.without_matrix(field, selector, places))
    if all(rank[-1] == "0" for rank in everywhere):
        raise ConfigError(
            f"adapter.targets names no matrix of this model that can have an adapter. There are: "
            f"{matrices_in_words(it.name for it in places)}."
        )
