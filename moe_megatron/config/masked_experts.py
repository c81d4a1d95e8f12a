"""Which experts of a run are masked, as a file beside each checkpoint: masked_experts.json.

It maps the number of a layer, from 1, to the numbers of its masked experts, from 0. No file means
that none is masked. It does not know tensors.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from moe_megatron.errors import CheckpointError
from moe_megatron.files import replace_file
from moe_megatron.reading import read_json

MASKED_FILE = "masked_experts.json"

Experts = frozenset[tuple[int, int]]
"""Pairs of a layer and an expert."""


def read_masked(checkpoint: Path) -> Experts:
    """The experts that are masked in a checkpoint.

    Raises:
        CheckpointError: The file is damaged.
    """
    file = checkpoint / MASKED_FILE
    try:
        layers = read_json(file)
        return frozenset((int(layer), int(e)) for layer, found in layers.items() for e in found)
    except FileNotFoundError:
        return frozenset()
    except (AttributeError, OSError, OverflowError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{file} does not map layers to lists of experts ({error}). Resume from another "
            "checkpoint, or mend the file by hand: {} masks no expert."
        ) from error


def write_masked(checkpoint: Path, experts: Experts) -> None:
    """Write the masked experts beside a checkpoint; nothing if there are none."""
    if experts:
        layers = {layer: experts_of(experts, layer) for layer in sorted({it[0] for it in experts})}
        checkpoint.mkdir(parents=True, exist_ok=True)
        replace_file(checkpoint / MASKED_FILE, [json.dumps(layers).encode()])


def experts_of(experts: Iterable[tuple[int, int]], layer: int) -> list[int]:
    """The masked experts of one layer, in order."""
    return sorted(expert for its_layer, expert in experts if its_layer == layer)
