"""The data section."""

import re
from typing import Any

import pytest

from moe_megatron.config import DataConfig
from moe_megatron.errors import ConfigError


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"paths": ()}, "data.paths must not be empty."),
        ({"paths": ("a", "")}, "data.paths must not be empty."),
        ({"paths": "a.txt"}, "data.paths needs a list of texts, not 'a.txt' (text)."),
        ({"tokenizer": ""}, "data.tokenizer must not be empty."),
        ({"sequence_length": 0}, "data.sequence_length must be at least 1, not 0."),
        ({"num_workers": -1}, "data.num_workers must be at least 0, not -1."),
        ({"max_bad_line_ratio": 2}, "data.max_bad_line_ratio must be 0 or more"),
        (
            {"paths": ("a", "b"), "weights": (1.0,)},
            "data.weights has 1 entries for 2 data.paths; give one weight for each path.",
        ),
        (
            {"tasks": ("a", "b")},
            "data.tasks has 2 names for 1 data.paths; give one name for each path, and a folder",
        ),
        (
            {"paths": ("a", "b"), "tasks": ("code", "code")},
            "two tasks are called code; give each a name of its own",
        ),
        ({"tasks": ("a b",)}, "'a b' is no name of a task: it takes letters, digits"),
        ({"tasks": ("base",)}, "and not 'base' or 'all', which mean something else."),
        (
            {"weights": (0.0,)},
            "data.weights must all be greater than 0, not [0.0]; leave out a path",
        ),
    ],
)
def test_data_wrong_value_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        DataConfig(**fields)


@pytest.mark.parametrize("split", ["", "1,1", "1,1,1,1", "0,1,1", "1,-1,0", "a,b,c", "inf,1,0"])
def test_split_unusable_is_refused(split: str) -> None:
    message = f"with training above 0, not '{split}'."
    with pytest.raises(ConfigError, match=re.escape(message)):
        DataConfig(split=split)


def test_split_shares_any_unit_sums_to_one() -> None:
    assert DataConfig(split="969, 30, 1").split_shares == (0.969, 0.03, 0.001)
    assert DataConfig(split="1,0,0").split_shares == (1.0, 0.0, 0.0)


def test_weights_whole_numbers_become_floats() -> None:
    config = DataConfig(paths=("a", "b"), weights=(1, 3))
    assert config.weights == (1.0, 3.0)


def test_a_task_has_the_number_of_its_place_and_another_name_is_refused() -> None:
    data = DataConfig(paths=("a", "b"), tasks=("code", "prose"))
    assert [data.task_number(name) for name in ("code", "prose")] == [0, 1]
    with pytest.raises(ConfigError, match=r"no task 'cod'. Did you mean 'code'\? Tasks are code"):
        data.task_number("cod")
    with pytest.raises(ConfigError, match=r"no task 'code'. Tasks are none: data.tasks is null."):
        DataConfig().task_number("code")
