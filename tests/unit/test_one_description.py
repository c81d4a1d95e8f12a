"""A field of a model is declared once: whoever reads models then carries it, or refuses it by name.

The fields are added to the source of the classes while an interpreter of its own imports them.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.config import ModelConfig, MoEConfig
from moe_megatron.config.architecture import VOCABULARY
from moe_megatron.config.fields import settings_of
from moe_megatron.mcore.layers.specs import APPLIED
from moe_megatron.model.support import COMPUTED

_NEW_FIELDS = {
    "moe_megatron.config.model ModelConfig": '''
    novel_width: int = setting(0, changes="tensors", flag="novel-width")
    """A field with a flag."""

    novel_turn: float = setting(1.0, changes="function")
    """A field without."""

    novel_habit: bool = setting(False, changes="training")
    """A field that no checkpoint has to do with."""

''',
    "moe_megatron.config.moe MoEConfig": '''
    novel_gate: bool = setting(False, changes="function")
    """A field of the experts."""

''',
    "moe_megatron.config.model_parts RopeScaling": '''
    novel_stretch: float = setting(1.0, changes="function")
    """A field of a group that every family with rotary positions can have."""

''',
    "moe_megatron.config.model_parts LatentAttention": '''
    novel_rank: int = setting(0, changes="tensors")
    """A field of a group that some families have."""

''',
}
_VALUES = {
    "model.novel_width": 8,
    "model.novel_turn": 0.5,
    "model.novel_habit": True,
    "moe.novel_gate": True,
    "model.rope_scaling.novel_stretch": 2.0,
    "model.latent_attention.novel_rank": 4,
}
_OF_THE_MODEL = [name for name in _VALUES if name != "model.novel_habit"]
_WITHOUT_FLAG = [name for name in _OF_THE_MODEL if name != "model.novel_width"]

_PROGRAM = """
import importlib.abc, importlib.util, json, sys
from pathlib import Path
from types import SimpleNamespace

PLACE, NEW_FIELDS, VALUES = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])

GROUPS = {"model.rope_scaling.factor": 2.0, "model.latent_attention.kv_lora_rank": 512}


class WithNewFields(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if any(key.split()[0] == name for key in NEW_FIELDS):
            file = Path(path[0]) / f"{name.rsplit('.')[-1]}.py"
            return importlib.util.spec_from_file_location(name, file, loader=self)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        source, before = Path(module.__file__).read_text(), "    def __post_init__(self)"
        for key, new_fields in NEW_FIELDS.items():
            name, kind = key.split()
            if name == module.__name__:
                place = source.index(before, source.index(f"class {kind}:"))
                source = source[:place] + new_fields + source[place:]
        exec(compile(source, module.__file__, "exec"), module.__dict__)


sys.meta_path.insert(0, WithNewFields())

from moe_megatron import MoEModel
from moe_megatron.config import RunConfig, apply_overrides, dump_yaml
from moe_megatron.config.flags import split_flags, to_flags
from moe_megatron.errors import MoEError
from moe_megatron.families import FAMILIES
from moe_megatron.mcore.layers.specs import use_our_layers
from moe_megatron.mcore.state.checkpoint import check_loadable
from moe_megatron.model.storage import load, save


def refusal(attempt):
    try:
        attempt()
    except MoEError as error:
        return str(error)


def megatrons_configuration():
    return SimpleNamespace(transformer=SimpleNamespace(), pre_wrap_hooks=[])


found = {}
for number, (name, value) in enumerate(VALUES.items()):
    place = PLACE / str(number)
    group = {key: given for key, given in GROUPS.items() if key.rpartition(".")[0] in name}
    plain = apply_overrides(RunConfig(), {"moe.num_experts": 4, **group})
    (place / "iter_0000001").mkdir(parents=True)
    (place / "latest_checkpointed_iteration.txt").write_text("1")
    (place / "iter_0000001" / "config.yaml").write_text(dump_yaml(plain))
    run = apply_overrides(plain, {name: value})
    model = run.architecture
    save(place / "model", model, {})
    found[name] = {
        "flags": [flag for flag in to_flags(run) if "novel" in flag],
        "model": refusal(lambda: MoEModel.from_architecture(model)),
        "megatron": refusal(lambda: use_our_layers(megatrons_configuration(), run)),
        "checkpoint": refusal(lambda: check_loadable(place, run)),
        "families": {
            each.name: [it.name for it in each.misfits(model)] for each in FAMILIES.values()
        },
        "stored": load(place / "model", "cpu")[0].value(name),
    }
found["model.novel_width"]["read"] = split_flags(["--novel-width", "8"])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("described")
    words = [str(place), json.dumps(_NEW_FIELDS), json.dumps(_VALUES)]
    command = [sys.executable, "-c", _PROGRAM, *words]
    root = Path(__file__).parents[2]
    answer = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr[-3000:]
    answers: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return answers


def test_its_flag_is_written_and_read(found: dict[str, Any]) -> None:
    assert "--novel-width" in found["model.novel_width"]["flags"]
    assert found["model.novel_width"]["read"] == {"model.novel_width": 8}
    assert "--novel-turn" not in found["model.novel_turn"]["flags"]


@pytest.mark.parametrize("name", _OF_THE_MODEL)
def test_who_does_not_know_it_refuses_it_by_name(found: dict[str, Any], name: str) -> None:
    answer = found[name]
    group = ".".join(name.split(".")[:2])
    assert f"MoEModel does not compute {group}" in answer["model"]
    assert f"{name} is " in answer["checkpoint"]
    for misfits in answer["families"].values():
        is_dense = "moe.num_experts" in misfits and group.startswith("moe.")
        assert name in misfits or group in misfits or is_dense


@pytest.mark.parametrize("name", _WITHOUT_FLAG)
def test_what_neither_a_flag_nor_a_layer_says_does_not_train(
    found: dict[str, Any], name: str
) -> None:
    refusal = f"{name} ({_VALUES[name]}) is supported neither"
    assert found[name]["megatron"].startswith(refusal)


def test_what_a_flag_says_trains(found: dict[str, Any]) -> None:
    assert found["model.novel_width"]["megatron"] is None


def test_what_changes_training_alone_is_free(found: dict[str, Any]) -> None:
    answer = found["model.novel_habit"]
    assert answer["model"] is answer["megatron"] is answer["checkpoint"] is None
    assert not any("model.novel_habit" in misfits for misfits in answer["families"].values())


def test_it_is_saved_with_a_model(found: dict[str, Any]) -> None:
    assert {name: answer["stored"] for name, answer in found.items()} == _VALUES


def test_what_is_computed_or_applied_is_declared() -> None:
    declared = {f"model.{it.path[0]}" for it in settings_of(ModelConfig)}
    declared |= {f"moe.{it.path[0]}" for it in settings_of(MoEConfig)} | {VOCABULARY}
    declared |= {f"model.{'.'.join(it.path)}" for it in settings_of(ModelConfig)}
    assert declared >= COMPUTED | APPLIED
