"""A family that is written in this file alone is converted both ways."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from moe_megatron.checkpoint.convert import Execution, export_checkpoint, import_checkpoint
from moe_megatron.config import RunConfig, apply_overrides
from moe_megatron.errors import MappingError
from moe_megatron.families import (
    FAMILIES,
    family_of,
    family_of_run,
    register_family,
    registered_family,
)
from moe_megatron.families.mixtral import MIXTRAL
from moe_megatron.families.rows import ATTENTION, OUTSIDE, experts, router
from moe_megatron.routing import resolve
from moe_megatron.testing import tiny_models

NEWCOMER = replace(
    MIXTRAL,
    name="newcomer",
    architecture="NewcomerForCausalLM",
    rows=(*OUTSIDE, *ATTENTION, router("gate.weight"), *experts("pool", ("a", "b", "c"))),
)


def test_a_folder_of_the_new_family_goes_to_megatron_and_back(tmp_path: Path) -> None:
    tiny_models.save("mixtral", tmp_path / "mixtral", fused=False)
    there = json.loads((tmp_path / "mixtral" / "config.json").read_text())
    renamed = {}
    for name, tensor in load_file(tmp_path / "mixtral" / "model.safetensors").items():
        for old, new in (("block_sparse_moe.gate", "gate"), ("block_sparse_moe", "pool")):
            name = name.replace(old, new)
        for old, new in (("w1", "a"), ("w3", "b"), ("w2", "c")):
            name = name.replace(f".{old}.", f".{new}.")
        renamed[name] = tensor
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "config.json").write_text(json.dumps({**there, "model_type": "newcomer"}))
    save_file(renamed, tmp_path / "new" / "model.safetensors", metadata={"format": "pt"})
    quiet = Execution(progress=False)
    with registered_family(NEWCOMER):
        import_checkpoint(tmp_path / "new", tmp_path / "megatron", execution=quiet)
        export_checkpoint(tmp_path / "megatron", tmp_path / "back", execution=quiet)
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == renamed.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in renamed.items())
    assert "newcomer" not in FAMILIES


def test_preference_decides_what_a_native_model_becomes() -> None:
    run = apply_overrides(RunConfig(), {"model.num_query_groups": 2})
    run = replace(run, moe=resolve(run.moe))
    assert family_of_run(run).name == "mixtral"
    with registered_family(NEWCOMER, preference=0):
        assert family_of_run(run) is family_of({"model_type": "newcomer"}) is NEWCOMER
    with registered_family(NEWCOMER):
        assert family_of_run(run).name == "mixtral"


def test_a_name_is_taken_once() -> None:
    with pytest.raises(MappingError, match="there is already a table for 'mixtral' models"):
        register_family(MIXTRAL)
