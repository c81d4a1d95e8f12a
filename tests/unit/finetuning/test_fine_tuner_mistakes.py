"""What `FineTuner` answers to mistakes, before anything is done."""

from typing import Any

import pytest

from moe_megatron import FineTuner, MoEModel
from moe_megatron.errors import ConfigError, MoEError

MODEL = MoEModel(hidden_size=16, num_layers=2, num_experts=4, vocab_size=64)

MISTAKES: dict[str, tuple[dict[str, Any], str]] = {
    "text for experts": (
        {"freeze_experts": "all"},
        "freeze_experts ('all') must be True or False, numbers of experts such as [0, 3], or",
    ),
    "a number for experts": ({"freeze_experts": 3}, "numbers by layers such as {2: [0, 3]}"),
    "an expert that is none": ({"freeze_experts": [4]}, "its layers have 4 experts, which count"),
    "a layer that is none": ({"freeze_experts": {3: [0]}}, "it has 2 layers, which count from 1"),
    "layer 0": ({"freeze_experts": {0: [0]}}, "a layer of freeze_experts (0) must be a whole num"),
    "one selector": ({"train": "router"}, "train ('router') must be a list of selectors, such as"),
    "no role": ({"train": ["routers"]}, "unknown word 'routers'. Did you mean 'router'?"),
    "nothing": ({"train": []}, "finetune.train must name something to train"),
    "all frozen": ({"freeze": ["all"]}, "finetune.freeze 'all' leaves nothing to train"),
    "no rate": ({"router_learning_rate": "slow"}, "a multiple of training.learning_rate such as"),
    "a rate of what is frozen": (
        {"freeze_experts": True, "expert_learning_rate": 1e-4},
        "finetune.expert_learning_rate (0.0001) has no effect, because finetune.freeze names",
    ),
    "twice": (
        {"train": ["router"], "overrides": {"finetune.train": ["norms"]}},
        "finetune.train is given twice, by overrides and by an argument of FineTuner(...)",
    ),
    "another name": ({"router_lr": 1e-3}, "FineTuner(...) has no argument 'router_lr'."),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_answered_in_a_paragraph(name: str) -> None:
    arguments, said = MISTAKES[name]
    with pytest.raises(ConfigError) as error:
        FineTuner(MODEL, **arguments)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"task": "instructions", "beta": 0.1}, "beta (0.1) has no effect on the task"),
        ({"task": "preferences", "beta": 0}, "beta (0)"),
        ({"task": "preferences", "beta": "small"}, "beta ('small')"),
        (
            {"task": "preferences", "beta": 0.1, "overrides": {"preferences": {"beta": 0.2}}},
            "preferences.beta is given twice, by overrides and by beta of train(...)",
        ),
    ],
)
def test_beta_that_cannot_be_used_is_answered(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        FineTuner(MODEL).train([{}], **given)
    assert said in str(error.value)


def test_beta_of_all_calls_is_not_that_of_one() -> None:
    tuner = FineTuner(MODEL, overrides={"preferences.beta": 0.2})
    with pytest.raises(ConfigError, match=r"preferences.beta is given twice, for all trainings"):
        tuner.train([{}], task="preferences", beta=0.1)


def test_beta_of_a_call_changes_nothing_of_the_tuner(monkeypatch: pytest.MonkeyPatch) -> None:
    tuner, changed = FineTuner(MODEL), []
    monkeypatch.setattr(
        FineTuner, "__setattr__", lambda self, name, value: changed.append(name), raising=False
    )
    with pytest.raises(MoEError):
        tuner.train([{}], task="preferences", beta=0.1)
    assert "_overrides" not in changed


def test_path_for_a_model_is_answered_with_how_to_load_it() -> None:
    with pytest.raises(ConfigError, match=r"FineTuner needs a MoEModel, not the text 'my_model'"):
        FineTuner("my_model")  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["text-generation", "chat", None])
def test_task_that_is_none_is_answered_with_all(task: Any) -> None:
    with pytest.raises(
        ConfigError, match=r"must be text_generation, instructions or preferences\."
    ):
        FineTuner(MODEL).train(["text"], task=task)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"unfreeze": "100:attention"}, "unfreeze ('100:attention') must be a list of steps and"),
        ({"unfreeze": ["attention"]}, "write STEP:SELECTOR, as in 100:attention"),
        ({"unfreeze": ["100:atention"]}, "unknown word 'atention'. Did you mean 'attention'?"),
        ({"unfreeze": ["1:norms"], "resume": True}, "resume=True continues one run, and unfreeze"),
    ],
)
def test_unfreezing_that_cannot_be_is_answered(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        FineTuner(MODEL).train(["text"], **given)
    assert said in str(error.value)
