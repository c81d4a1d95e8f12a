"""The whole configuration, and what holds for every section."""

import ast
import dataclasses
import inspect
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.config import ModelConfig, RunConfig, apply_overrides
from moe_megatron.config.run import SECTIONS
from moe_megatron.errors import ConfigError


def test_sections_are_the_fields_of_the_run_in_order() -> None:
    names = [field.name for field in dataclasses.fields(RunConfig)]
    assert names[: len(SECTIONS)] == list(SECTIONS)


@pytest.mark.parametrize("config_type", [*SECTIONS.values(), RunConfig])
def test_every_field_has_its_help_string_below(config_type: type) -> None:
    (definition,) = ast.parse(inspect.getsource(config_type)).body
    assert isinstance(definition, ast.ClassDef)
    for statement, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign):
            assert isinstance(below, ast.Expr), ast.unparse(statement)
            assert isinstance(below.value, ast.Constant), ast.unparse(statement)
            assert isinstance(below.value.value, str), ast.unparse(statement)


@pytest.mark.parametrize("config_type", [*SECTIONS.values(), RunConfig])
def test_every_section_is_frozen_keyword_only_and_slotted(config_type: type[Any]) -> None:
    config = config_type()
    name = dataclasses.fields(config)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, name, None)
    assert all(field.kw_only for field in dataclasses.fields(config))
    assert not hasattr(config, "__dict__")


def test_run_survives_pickling_to_another_process() -> None:
    config = apply_overrides(RunConfig(), {"megatron.manual-gc": True})
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"run_dir": ""}, "run_dir must not be empty."),
        ({"model": 3}, "model needs a ModelConfig, not 3."),
        (
            {"megatron": {"--manual-gc": True}},
            "megatron needs flag names without leading dashes, such as 'manual-gc', not "
            "'--manual-gc'.",
        ),
        ({"megatron": {"": True}}, "without leading dashes, such as 'manual-gc', not ''."),
        (
            {"megatron": {"manual_gc": True, "manual-gc": True}},
            "megatron gives the flag 'manual-gc' twice, as 'manual_gc' and 'manual-gc'; keep one.",
        ),
        ({"megatron": {"x": {}}}, "megatron.x needs true or false, a whole number, text,"),
    ],
)
def test_run_wrong_value_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        RunConfig(**fields)


def test_megatron_flags_keep_their_types_and_lose_nulls() -> None:
    given = {"a_b": "1e-3", "c": 1, "d": True, "e": [1, "x"], "f": 0.5, "g": None}
    config = RunConfig(megatron=given)  # type: ignore[arg-type]
    assert config.megatron == {"a-b": "1e-3", "c": 1, "d": True, "e": (1, "x"), "f": 0.5}
    assert config.megatron["d"] is True
    given["h"] = 1
    assert "h" not in config.megatron


def test_derived_sizes_follow_the_sections() -> None:
    config = RunConfig()
    assert config.moe_layers == config.routed_layers == (1, 2, 3, 4)
    assert config.expert_hidden_size == config.model.dense_ffn_size
    assert config.max_position_embeddings == config.data.sequence_length
    config = RunConfig(model=ModelConfig(max_position_embeddings=512))
    assert config.max_position_embeddings == 512


def test_config_import_loads_neither_torch_nor_megatron() -> None:
    code = (
        "import sys, moe_megatron.config; "
        "print([name for name in ('torch', 'megatron', 'numpy') if name in sys.modules])"
    )
    root = Path(__file__).parents[3]
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
