"""A broken model folder is converted exactly, or answered in one paragraph."""

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from torch import Tensor, equal

from moe_megatron.checkpoint.convert import Execution, export_checkpoint, import_checkpoint
from moe_megatron.config.mapping import from_mapping
from moe_megatron.errors import MoEError
from moe_megatron.families import family_of
from moe_megatron.testing import tiny_models
from tests.examples import deep_but
from tests.unit.checkpoint import mutations

QUIET = Execution(progress=False, workers=1)
LONGEST = 700
"""Characters of a paragraph, with the name of a temporary folder."""
CASES = sorted(mutations.cases())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that gives the whole folder of a family."""

    @cache
    def folder(name: str) -> Path:
        path = tmp_path_factory.mktemp("whole") / name
        tiny_models.save(name, path, fused=False)
        return path

    return folder


def meaning(config: dict[str, object]) -> object:
    family = family_of(config)
    run = from_mapping(family.run_config(config, family.geometry(config, ())))
    return run, family.limits(config)


def problem(source: Path, out: Path, tensors: Callable[[Path], dict[str, Tensor]]) -> str:
    """What is wrong with the answer to a folder; empty if it is right."""
    from transformers import AutoConfig

    try:
        import_checkpoint(source, out / "megatron", execution=QUIET)
    except MoEError as error:
        told = str(error)
        return told if "\n" in told or not 20 < len(told) < LONGEST or told[-1] not in ".]" else ""
    export_checkpoint(out / "megatron", out / "back", execution=QUIET)
    before, after = tensors(source), tensors(out / "back")
    if lost := [name for name, value in after.items() if not equal(value, before[name])]:
        return f"{lost} differ"
    config = json.loads((source / "config.json").read_text())
    try:
        there = AutoConfig.for_model(**config).to_dict()
    except Exception:
        return ""  # transformers has no meaning for it
    if meaning(config) != meaning(there):
        return f"{config} is another model to transformers"
    return ""


def test_there_are_250_of_each_shape_and_all_differ() -> None:
    assert len(CASES) == len(set(CASES)) >= 250


@pytest.mark.timeout(120)
@pytest.mark.parametrize("family", deep_but(["mixtral"], mutations.FAMILIES))
def test_broken_folder_is_exact_or_answered_in_a_paragraph(
    family: str,
    whole: Callable[[str], Path],
    tmp_path: Path,
    tensors: Callable[[Path], dict[str, Tensor]],
) -> None:
    wrong, refused = [], 0
    for number, case in enumerate(case for case in CASES if case[0] == family):
        source = tmp_path / str(number) / "model"
        shutil.copytree(whole(family), source)
        mutations.mutate(source, *case)
        try:
            found = problem(source, tmp_path / str(number), tensors)
        except Exception as error:  # a traceback is what must not be
            found = f"{type(error).__name__}: {error}"
        refused += not (tmp_path / str(number) / "megatron").exists()
        if found:
            wrong.append(f"{case}: {found[:300]}")
        shutil.rmtree(tmp_path / str(number))
    assert wrong == []
    assert refused > 20
