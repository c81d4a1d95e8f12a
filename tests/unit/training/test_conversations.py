"""Trainers on conversations: what they read, what they measure, and what they refuse."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pytest
import torch

from moe_megatron import MoEModel, MoETrainer
from moe_megatron.data.instructions.packing import packed_rows
from moe_megatron.data.instructions.stored import StoredSamples
from moe_megatron.errors import ConfigError, DataError
from moe_megatron.mcore import world
from moe_megatron.model.inputs import IGNORED_LABEL
from moe_megatron.text.demo import demo_tokenizer
from moe_megatron.training.scoring import batches
from moe_megatron.training.texts import index_data

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
ROWS = [
    {"prompt": f"{it}+{it}?", "completion": " ".join(["is", str(2 * it)] * (it % 4 + 1))}
    for it in range(12)
]
OBJECTS: dict[str, Any] = {
    "a generator": (row for row in ROWS),
    "a frame": pd.DataFrame(ROWS),
    "a table": pa.Table.from_pylist(ROWS),
    "columns": {name: [row[name] for row in ROWS] for name in ROWS[0]},
    "a dataset": datasets.Dataset.from_list(ROWS),
    "a stream": datasets.Dataset.from_list(ROWS).to_iterable_dataset(),
    "one split": datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "tok"
    demo_tokenizer(vocab_size=512).save(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def left() -> Iterator[None]:
    """Leaves the process group of a training in this process."""
    yield
    world.leave()


@pytest.fixture
def trainer(folder: Path, tmp_path: Path) -> MoETrainer:
    fp32 = {"training.precision": "fp32"}
    run_dir = tmp_path / "run"
    return MoETrainer(small_model(), tokenizer=str(folder), run_dir=run_dir, overrides=fp32)


def small_model(**options: Any) -> MoEModel:
    torch.manual_seed(1)
    shape = {"hidden_size": 32, "num_experts": 4, "num_layers": 2, "num_attention_heads": 2}
    return MoEModel(**shape, vocab_size=512, **options)


def test_objects_of_rows_and_files_of_them_are_the_same_data(trainer, tmp_path):
    read = {"text_key": "text", "data_format": "instructions", "length": 64}
    expected = StoredSamples(index_data(ROWS, trainer.tokenizer, **read)[0]).tokens.tolist()
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, given in {**OBJECTS, "a path": path, "a name": str(path), "paths": [path]}.items():
        prefix, tokens = index_data(given, trainer.tokenizer, **read)
        assert StoredSamples(prefix).tokens.tolist() == expected, name
        assert tokens % 64 == 0


def test_model_in_plain_torch_measures_answers_alone(trainer):
    prefix, _ = index_data(ROWS, trainer.tokenizer, "text", "completion", length=64)
    stored, (batch,) = StoredSamples(prefix), batches(prefix, 64, 100, None)
    assert batch.predicted == int(stored.learned_within(65).sum())
    losses = []
    with torch.no_grad():
        for number in range(len(stored)):  # the twin: sample by sample, token by token
            ids, learned = stored.sample(number, 65)
            tokens = torch.from_numpy(ids.astype("int64"))
            scores = torch.log_softmax(trainer.model(tokens[None]).logits[0], dim=-1)
            losses += [-scores[it - 1, tokens[it]] for it in range(1, len(ids)) if learned[it]]
    result = trainer.evaluate(ROWS, data_format="completion", sequence_length=64)
    assert result.tokens == len(losses)
    assert result.loss == pytest.approx(float(torch.stack(losses).mean()), rel=1e-5)


@pytest.mark.distributed
def test_packed_rows_in_megatron_have_the_loss_of_samples_in_plain_torch(trainer, left):
    from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler

    MoEAuxLossAutoScaler.main_loss_backward_scale = torch.tensor(1.0)  # as other users leave it
    before = trainer.evaluate(ROWS, data_format="completion", sequence_length=64)
    _, tokens = index_data(ROWS, trainer.tokenizer, "text", "completion", length=64)
    rows = tokens // 64
    assert rows < len(ROWS)
    result = trainer.train(
        ROWS,
        eval_dataset=ROWS,
        data_format="completion",
        batch_size=rows,
        sequence_length=64,
        num_epochs=20,
    )
    assert result.steps == 20
    assert result.losses[0] == pytest.approx(before.loss, rel=1e-5)
    after = trainer.evaluate(ROWS, data_format="completion", sequence_length=64)
    assert after.loss < before.loss - 0.5
    assert result.validation_loss == pytest.approx(after.loss, rel=1e-4)


@pytest.mark.distributed
def test_losses_of_routers_weigh_in_megatron_what_they_do_in_plain_torch(folder, tmp_path, left):
    """Of a row, few tokens are learned, and every token is routed: gradients tell the two apart."""
    coefs = {"aux_loss_coef": 0.5, "z_loss_coef": 0.05}
    model = small_model(**coefs)
    fp32 = {"training.precision": "fp32"}
    trainer = MoETrainer(
        model,
        router_z_loss_coef=0.05,
        aux_loss_coef=0.5,
        tokenizer=str(folder),
        run_dir=tmp_path / "run",
        overrides=fp32,
    )
    prefix, _ = index_data(ROWS, trainer.tokenizer, "text", "completion", length=64)
    stored = StoredSamples(prefix)
    rows = packed_rows(stored, 64).rows
    shape = (len(rows), 65)
    tokens, positions, valid = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
    labels = torch.full(shape, IGNORED_LABEL)
    for number, row in enumerate(rows):
        end = 0
        for sample in row:  # without its last token, which Megatron does not see
            ids, learned = (torch.from_numpy(it.copy()) for it in stored.sample(sample, 65))
            start, end = end, end + len(ids) - 1
            tokens[number, start:end], valid[number, start:end] = ids[:-1].long(), 1
            positions[number, start:end] = torch.arange(end - start)
            labels[number, start:end] = ids[1:].long().masked_fill(~learned[1:], IGNORED_LABEL)
    output = model(tokens, valid, position_ids=positions)
    loss = torch.nn.functional.cross_entropy(output.logits.flatten(0, 1), labels.flatten())
    (loss + output.router_loss).backward()
    squares = [it.grad.square().sum() for it in model.parameters() if it.grad is not None]
    model.zero_grad()
    result = trainer.train(
        ROWS, data_format="completion", batch_size=len(rows), sequence_length=64, max_steps=1
    )
    (step,) = result.history.steps
    assert step.loss == pytest.approx(float(loss), rel=1e-5)
    assert step.grad_norm == pytest.approx(float(torch.stack(squares).sum().sqrt()), rel=1e-4)


def test_mistakes_are_told_before_a_run_begins(trainer, tmp_path):
    with pytest.raises(DataError, match=r"train_data\[0\] is str, not a dictionary"):
        trainer.train(["Hello"], data_format="messages")
    with pytest.raises(DataError, match="train_data holds no conversation"):
        trainer.train([], data_format="messages")
    with pytest.raises(DataError, match="train_data is a dictionary, but not of columns"):
        trainer.train(ROWS[0], data_format="completion")
    with pytest.raises(DataError, match="Did you mean 'alpaca'"):
        trainer.train(ROWS, data_format="alpacca")
    with pytest.raises(DataError, match=r"12 of 12 lines .* malformed"):
        trainer.train(ROWS, data_format="alpaca")
    with pytest.raises(DataError, match=r"none of 12 samples .* within a row of 3 tokens"):
        trainer.train(ROWS, data_format="completion", sequence_length=3)
    prefix, _ = index_data(ROWS, trainer.tokenizer, "text", "completion", length=64)
    with pytest.raises(DataError, match=r"is instruction data and .* is text"):
        trainer.train(["Hello you"], eval_dataset=prefix)
    with pytest.raises(DataError, match=r"has no chat template"):
        MoETrainer(trainer.model, tokenizer="demo").train(ROWS, data_format="completion")
    with pytest.raises(ConfigError, match=r"overrides cannot set data.format.* data_format of"):
        MoETrainer(trainer.model, overrides={"data.format": "messages"})
    assert not list(tmp_path.iterdir())
