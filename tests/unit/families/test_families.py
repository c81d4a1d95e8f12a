"""Every family against transformers (names and shapes, both layouts) and Megatron's keys."""

import json
from collections import defaultdict
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from moe_megatron.config.mapping import from_mapping
from moe_megatron.families import FAMILIES, Family, Geometry, family_of
from moe_megatron.families.links import Block, Link, Transform
from moe_megatron.testing import tiny_models
from tests.examples import FIRST, deep_but

Shapes = dict[str, tuple[int, ...]]


def saved(name: str, folder: Path, *, fused: bool) -> tuple[dict[str, Any], Shapes]:
    """`config.json` and shapes of the tensors of an example on disk."""
    tiny_models.save(name, folder, fused=fused)
    shapes: Shapes = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in names}
    return json.loads((folder / "config.json").read_text()), shapes


def elements(block: Block) -> set[tuple[int, int]]:
    """The elements of a tensor, as (row, column), that a block reads."""
    columns = range(block.shape[-1] if len(block.shape) > 1 else 1)
    picked = {
        Transform.TRANSPOSE_EVEN: columns[::2],
        Transform.EVEN: columns[::2],
        Transform.TRANSPOSE_ODD: columns[1::2],
        Transform.ODD: columns[1::2],
    }.get(block.transform, columns)
    return {(row, c) for row in range(block.start, block.start + block.rows) for c in picked}


def rows_made(block: Block) -> int:
    """Rows of the Megatron matrix that a block fills, in elements of it."""
    return len(elements(block))


SAME_LAYOUT = ("gpt_oss", "llama4_text", "switch_transformers")
"""Families whose published checkpoints have the layout of transformers 5."""


def test_every_family_has_an_example() -> None:
    assert {family for family, _ in tiny_models.EXAMPLES.values()} == set(FAMILIES)


@pytest.mark.parametrize("fused", [False, True], ids=["classic", "fused"])
@pytest.mark.parametrize("name", deep_but(FIRST, tiny_models.EXAMPLES))
def test_links_cover_every_tensor_exactly_once(name: str, fused: bool, tmp_path: Path) -> None:
    config, shapes = saved(name, tmp_path, fused=fused)
    family = family_of(config)
    geometry = family.geometry(config, shapes)
    links = family.links(geometry, fused=fused)
    covered: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for link in links:
        for block in link.blocks:
            assert block.shape == shapes.get(block.name), block.name
            covered[block.name] += elements(block)
    assert set(covered) == set(shapes)
    for tensor, found in covered.items():
        assert len(found) == len(set(found)) == prod(shapes[tensor]), tensor
    if family.is_moe and any(geometry.moe_layers):
        assert family.has_fused_names(shapes) == fused or family.name in SAME_LAYOUT


@pytest.mark.parametrize("name", tiny_models.EXAMPLES)
def test_blocks_fill_every_megatron_matrix(name: str) -> None:
    family, geometry = example(name)
    for link in family.links(geometry):
        assert sum(map(rows_made, link.blocks)) == prod(link.shape), link.key
        assert link.shape[0] % link.chunks == 0


@pytest.mark.parametrize("name", tiny_models.EXAMPLES)
def test_configuration_survives_the_way_to_a_run_and_back(name: str) -> None:
    config = tiny_models.config_of(name)
    family = family_of(config)
    run = from_mapping(family.run_config(config))
    run.validate()
    assert family.hf_config(run, config) == config


def example(name: str) -> tuple[Family, Geometry]:
    config = tiny_models.config_of(name)
    family = family_of(config)
    return family, family.geometry(config, ())


def megatron_shapes(links: list[Link], geometry: Geometry) -> Shapes:
    """What Megatron calls the links, and the whole tensors they are part of."""
    found = {}
    for link in links:
        if link.key.startswith("hugging_face."):
            continue
        leading: tuple[int, ...] = () if link.expert is None else (geometry.experts,)
        key = link.key
        if link.layer is not None and geometry.homogeneous:
            leading = (geometry.layers, *leading)
            key = key.replace("{layer}.", "")
        found[key.format(layer=link.layer)] = (*leading, *link.shape)
    return found


WITH_OTHER_LAYERS = ("qwen3_next", "qwen3_5_moe_text")
"""Families of which Megatron's GPT has other layers."""


@pytest.mark.parametrize(
    "name",
    deep_but(
        FIRST, (n for n, (f, _) in tiny_models.EXAMPLES.items() if f not in WITH_OTHER_LAYERS)
    ),
)
def test_keys_and_shapes_are_those_of_megatron(
    name: str,
    megatron_model: Callable[[Any], Any],
    sharded_tensors: Callable[[Any], list[Any]],
) -> None:
    config = tiny_models.config_of(name)
    family, geometry = example(name)
    tensors = sharded_tensors(megatron_model(from_mapping(family.run_config(config, geometry))))
    there = {tensor.key: tuple(tensor.global_shape) for tensor in tensors}
    ours = megatron_shapes(family.links(geometry), geometry)
    assert there == ours


def test_layers_of_multi_token_prediction_have_the_keys_of_megatron(
    megatron_model: Callable[[Any], Any], sharded_tensors: Callable[[Any], list[Any]]
) -> None:
    config = tiny_models.config_of("glm4_moe") | {"num_nextn_predict_layers": 2}
    family = family_of(config)
    geometry = family.geometry(config)
    assert geometry.mtp_layers == 2
    tensors = sharded_tensors(megatron_model(from_mapping(family.run_config(config, geometry))))
    there = {tensor.key: tuple(tensor.global_shape) for tensor in tensors}
    assert there == megatron_shapes(family.links(geometry), geometry)
