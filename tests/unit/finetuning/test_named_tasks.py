"""Tasks as people name them."""

import pytest

from moe_megatron.errors import ConfigError
from moe_megatron.finetuning.named_tasks import NamedTask, fields_of


def fields(*texts: str) -> dict[str, object]:
    return fields_of([NamedTask.read(text) for text in texts])


def test_a_weight_is_a_number_behind_the_last_colon() -> None:
    assert fields("code=demo:code", "qa=owner/name:config:train:0.5", "x=a=b.jsonl:3") == {
        "data.paths": ["demo:code", "owner/name:config:train", "a=b.jsonl"],
        "data.tasks": ["code", "qa", "x"],
        "data.weights": [1.0, 0.5, 3.0],
    }
    assert fields("code=demo:code")["data.weights"] is None


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["code"], r"'code' does not say what a task is and where its data: write NAME=DATA"),
        (["=a.jsonl"], "does not say what a task is"),
        (["code="], "does not say what a task is"),
        (["code=a:0"], r"the weight of the task 'code' \(0\) must be above 0 and finite; leave"),
        (["code=a:-1"], r"the weight of the task 'code' \(-1\) must be above 0"),
        (["code=a:nan"], r"the weight of the task 'code' \(nan\) must be above 0"),
        (["code=a:inf"], r"the weight of the task 'code' \(inf\) must be above 0 and finite"),
        (["code=a", "code=b"], "two tasks are called code; give each a name of its own"),
        (["base=a"], "'base' is no name of a task"),
    ],
)
def test_what_is_no_task_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fields(*texts)
