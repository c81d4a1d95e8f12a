"""What `moe-megatron finetune` and `train --adapter-*` answer to mistakes, before processes start.

Each is one paragraph, and leaves all files as they were. What is wrong with an adapter's folder is
in `adapters/test_adapter_verb_mistakes.py`; with names of tasks, in `test_named_tasks.py`.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from moe_megatron.testing.random_checkpoint import write_random
from moe_megatron.testing.tiny_models import config_of
from moe_megatron.text.training import train_tokenizer
from tests.unit.mistakes import assert_answered_in_a_paragraph, content_of

TEXTS = [f"Document {i}: the quick brown fox jumps over {i * i} lazy dogs." for i in range(40)]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
NO_SYSTEM = (
    "{% for message in messages %}{% if message['role'] == 'system' %}"
    "{{ raise_exception('There is no system here') }}{% endif %}{{ message['content'] }}"
    "{% endfor %}"
)


def chat(*roles: str) -> dict[str, object]:
    return {"messages": [{"role": role, "content": f"{role} says"} for role in roles]}


ROWS: dict[str, list[dict[str, object]]] = {
    "texts": [{"text": text} for text in TEXTS],
    "empty": [],
    "blank": [{"text": " "}] * 3,
    "chat": [chat("user", "assistant")] * 40,
    "systems": [chat("system", "user", "assistant")] * 40,
    "robots": [chat("robot", "assistant")] * 40,
    "questions": [chat("user")] * 40,
    "pairs": [{"prompt": "a?", "chosen": "b", "rejected": "c"}] * 40,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models as people have them, and data that does not suit them."""
    folder = tmp_path_factory.mktemp("mistakes")
    train_tokenizer(TEXTS, folder / "tokenizer", vocab_size=300)
    models = {"model": TEMPLATE, "no_system": NO_SYSTEM, "no_template": None, "small": TEMPLATE}
    for name, template in models.items():
        sizes = {"vocab_size": 200 if name == "small" else 300, "num_hidden_layers": 1}
        write_random(folder / name, {**config_of("olmoe"), **sizes})
        for path in (folder / "tokenizer").iterdir():
            shutil.copy(path, folder / name)
        if template:
            (folder / name / "chat_template.jinja").write_text(template)
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "junk.jsonl").write_text("{no\nno}\n")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def there(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Works in the place, with a cache elsewhere; whatever is answered, no file there changes."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(tmp_path / "cache"))
    before = content_of(place)
    yield
    assert content_of(place) == before


ADAPTED = "model texts.jsonl --adapter-rank 2"
TUNED = {
    # what is adapted
    f"{ADAPTED} --adapter-targets expert": r"names no parameters: .* Did you mean 'experts'\?",
    f"{ADAPTED} --adapter-targets *.linear_fc3.weight": (
        r"'\*.linear_fc3.weight' names no matrix that can have an adapter. There are: .*linear_fc1"
    ),
    f"{ADAPTED} --adapter-targets shared_experts": "it has no shared experts",
    f"{ADAPTED} --adapter-targets router": "To train router, name it in finetune.train",
    "model texts.jsonl --adapter-rank 0": "adapter.rank must be at least 1, not 0",
    "model texts.jsonl --adapter-rank 64": (
        r"the rank 64 of an adapter is larger than .* \[144, 48\]; set adapter.rank to 48 or less"
    ),
    f"{ADAPTED} --adapter-ranks experts@1=64": r"the rank 64 .*experts.0.linear_fc1.weight \[112",
    f"{ADAPTED} --adapter-ranks experts@1": "must be SELECTOR=RANK",
    f"{ADAPTED} --adapter-magnitude --adapter-frozen-experts nf4": "leave one of them out",
    "model texts.jsonl --adapter-alpha 3": "adapter.alpha has no effect without adapter.rank",
    # data
    "model empty.jsonl": "data file empty.jsonl is empty",
    "model empty.jsonl --task instructions": "data file empty.jsonl is empty",
    "model junk.jsonl": r"2 of 2 lines .* are malformed, .*junk.jsonl:1: not JSON",
    "model blank.jsonl": "no document with any text in",
    "model chat.jsonl": r"conversations need .* --task instructions of moe-megatron finetune",
    "model texts.jsonl --task instructions": "in no known format of instruction data",
    "model robots.jsonl --task instructions": r"robots.jsonl:1: message 1: the role is none of sys",
    "model questions.jsonl --task instructions": (
        r"40 of 40 lines .* are malformed, .*questions.jsonl:1: no answer: there is no turn"
    ),
    "no_system systems.jsonl --task instructions": (
        "systems.jsonl:1: the chat template refuses the turns system user assistant: it says: Ther"
    ),
    "no_template chat.jsonl --task instructions": (
        "tokenizer in no_template has no chat template, .* into no_template/chat_template.jinja"
    ),
    "model pairs.jsonl --task instructions": "say so: --task preferences",
    "model chat.jsonl --task preferences": (
        r"chat.jsonl holds conversations \(messages\) .* or learn the answers: --task instructions"
    ),
    "small texts.jsonl": (
        "the tokenizer in small has 300 tokens, and the embedding of the model 200 rows, .* --set "
        "data.tokenizer=FOLDER"
    ),
    # tasks
    "model texts.jsonl --task instruction": r"a kind of task, .* Did you mean 'instructions'\?",
    "model texts.jsonl --task instructions preferences": "says more than one thing to learn",
    "model --task base=texts.jsonl --base-data texts.jsonl": "'base' is no name of a task",
    "model --task a=texts.jsonl:0": r"weight of the task 'a' \(0\) must be above 0 and finite",
    # the model, and where to write
    "adapter texts.jsonl": r"it holds an adapter \(LoRA\), .* moe-megatron adapter merge",
    "tokenizer texts.jsonl": "it holds a tokenizer alone; give the folder of a model",
    "texts.jsonl texts.jsonl": "texts.jsonl is not a folder",
    "./nowhere texts.jsonl": "neither a folder nor a Hub id",
    "model texts.jsonl --output tokenizer": r"tokenizer exists and is not empty; choose another fo",
    "model texts.jsonl --output texts.jsonl": "texts.jsonl is a file; give the name of a folder",
    # how long, and how fast
    "model texts.jsonl --epochs 0": r"--epochs \(0\) must be above 0, such as 1 or 0.5",
    "model texts.jsonl --epochs nan": r"--epochs \(nan\) must be above 0",
    "model texts.jsonl --router-learning-rate slow": "or a multiple of training.learning_rate",
    "model texts.jsonl --used-experts --share nan": r"tokens \(nan\) must be above 0 and at most 1",
    "model texts.jsonl --experts-by-profile texts.jsonl": "not valid JSON",
    "model texts.jsonl --unfreeze soon": "write STEP:SELECTOR, as in 100:attention",
}


@pytest.mark.parametrize("words", TUNED)
def test_mistake_in_tuning_is_answered_in_a_paragraph(words: str, capsys) -> None:
    output = "" if "--output" in words else "--output new"
    short = "--seq-length 32 --num-processes 1"
    assert_answered_in_a_paragraph(f"finetune {words} {output} {short}", TUNED[words], capsys)


TRAINED = {
    "--adapter-rank 0": "adapter.rank must be at least 1, not 0",
    "--adapter-rank 65": r"the rank 65 of an adapter is larger than .* set adapter.rank to 64",
    "--adapter-rank 2 --adapter-targets attentoin": r"Did you mean 'attention'\?",
    "--adapter-rank 2 --adapter-targets *.linear_q.weight": "names no matrix .* There are: ",
    "--adapter-rank 2 --adapter-dropout 1": "adapter.dropout must be at least 0 and less than 1",
    "--adapter-rank 2 --adapter-experts shared_b": r"Did you mean 'shared_a'\?",
    "--adapter-rank 2 --adapter-scaling rslora": "needs 'standard' or 'rank_stabilized'",
    "--adapter-frozen-experts nf4": "adapter.frozen_experts has no effect without adapter.rank",
}


@pytest.mark.parametrize("words", TRAINED)
def test_mistake_with_adapters_of_a_run_is_answered_in_a_paragraph(words: str, capsys) -> None:
    run = "train --config test_tiny --mock-data --num-processes 1 --run-dir new"
    assert_answered_in_a_paragraph(f"{run} {words}", TRAINED[words], capsys)
