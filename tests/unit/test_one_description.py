"""A field of a model is declared once: whoever reads models then carries it, or refuses it by name.

The fields are added to the source of `ModelConfig` while an interpreter of its own imports it.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

_FIELDS = '''
    novel_width: int = setting(0, changes="tensors", flag="novel-width")
    """A field with a flag."""

    novel_turn: float = setting(1.0, changes="function")
    """A field without."""

    novel_habit: bool = setting(False, changes="training")
    """A field that no checkpoint has to do with."""

'''

_PROGRAM = """
import importlib.abc, importlib.util, json, sys
from pathlib import Path

PLACE, NEW_FIELDS = Path(sys.argv[1]), sys.argv[2]


class WithNewFields(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name == "moe_megatron.config.model":
            file = Path(path[0]) / "model.py"
            return importlib.util.spec_from_file_location(name, file, loader=self)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        source, before = Path(module.__file__).read_text(), "    def __post_init__(self)"
        assert source.count(before) == 1
        source = source.replace(before, NEW_FIELDS + before)
        exec(compile(source, module.__file__, "exec"), module.__dict__)


sys.meta_path.insert(0, WithNewFields())

from moe_megatron import MoEModel
from moe_megatron.config import RunConfig, apply_overrides, dump_yaml
from moe_megatron.config.flags import split_flags, to_flags
from moe_megatron.errors import MoEError
from moe_megatron.families import FAMILIES
from moe_megatron.mcore.layers.specs import _check_known
from moe_megatron.mcore.state.checkpoint import check_loadable
from moe_megatron.model.storage import load, save


def refusal(attempt):
    try:
        attempt()
    except MoEError as error:
        return str(error)


plain, found = RunConfig(), {}
(PLACE / "latest_checkpointed_iteration.txt").write_text("1")
(PLACE / "iter_0000001").mkdir()
(PLACE / "iter_0000001" / "config.yaml").write_text(dump_yaml(plain))
for name, value in (("novel_width", 8), ("novel_turn", 0.5), ("novel_habit", True)):
    run = apply_overrides(plain, {f"model.{name}": value})
    model = run.architecture
    save(PLACE / name, model, {})
    found[name] = {
        "flags": [flag for flag in to_flags(run) if "novel" in flag],
        "model": refusal(lambda: MoEModel.from_architecture(model)),
        "megatron": refusal(lambda: _check_known(model)),
        "checkpoint": refusal(lambda: check_loadable(PLACE, run)),
        "families": {
            each.name: [it.name for it in each.misfits(model)] for each in FAMILIES.values()
        },
        "stored": getattr(load(PLACE / name, "cpu")[0].model, name),
    }
found["novel_width"]["read"] = split_flags(["--novel-width", "8"])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("described")
    command = [sys.executable, "-c", _PROGRAM, str(place), _FIELDS]
    root = Path(__file__).parents[2]
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr[-3000:]
    told: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return told


def test_its_flag_is_written_and_read(found: dict[str, Any]) -> None:
    assert "--novel-width" in found["novel_width"]["flags"]
    assert found["novel_width"]["read"] == {"model.novel_width": 8}
    assert "--novel-turn" not in found["novel_turn"]["flags"]


@pytest.mark.parametrize("name", ["novel_width", "novel_turn"])
def test_who_does_not_know_it_refuses_it_by_name(found: dict[str, Any], name: str) -> None:
    answer = found[name]
    assert f"MoEModel does not compute model.{name}" in answer["model"]
    assert f"model.{name} is " in answer["checkpoint"]
    assert all(f"model.{name}" in misfits for misfits in answer["families"].values())


def test_what_neither_a_flag_nor_a_layer_says_does_not_train(found: dict[str, Any]) -> None:
    assert found["novel_turn"]["megatron"].startswith("model.novel_turn (0.5) is supported neither")
    assert found["novel_width"]["megatron"] is None


def test_what_changes_training_alone_is_free(found: dict[str, Any]) -> None:
    answer = found["novel_habit"]
    assert answer["model"] is answer["megatron"] is answer["checkpoint"] is None
    assert not any("model.novel_habit" in misfits for misfits in answer["families"].values())


def test_it_is_saved_with_a_model(found: dict[str, Any]) -> None:
    stored = {name: answer["stored"] for name, answer in found.items()}
    assert stored == {"novel_width": 8, "novel_turn": 0.5, "novel_habit": True}
