"""What `MoETrainer` does without Megatron's loop; the loop is in tests/functional."""

import math

import pytest
import torch

from moe_megatron import MoEModel, MoETrainer
from moe_megatron.errors import CheckpointError, ConfigError
from moe_megatron.text.training import train_tokenizer

TEXTS = [f"Document {i}: the quick brown fox, x = {i * i}." for i in range(10)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return train_tokenizer(TEXTS, tmp_path_factory.mktemp("tokenizer") / "tok", vocab_size=280)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def build(tokenizer, tmp_path):
    def make(model_options=None, **options):
        torch.manual_seed(0)
        shape = {"hidden_size": 32, "num_experts": 4, "num_layers": 1, "num_attention_heads": 4}
        model = MoEModel(**shape, vocab_size=280, expert_hidden_size=16, **(model_options or {}))
        return MoETrainer(
            model, **{"tokenizer": str(tokenizer.directory), "run_dir": tmp_path / "run"} | options
        )

    return make


def test_evaluate_is_the_mean_loss_of_every_predicted_token(build, tokenizer):
    trainer, length = build(), 16
    stream = [t for ids in tokenizer.encode_batch(TEXTS) for t in (*ids, tokenizer.eod_id)]
    losses = []
    for start in range(0, len(stream), length):
        row = torch.tensor([stream[start : start + length]])
        with torch.no_grad():
            logits = trainer.model.eval()(row).logits[0]
        losses += [
            float(torch.nn.functional.cross_entropy(logits[i], row[0, i + 1]))
            for i in range(row.shape[1] - 1)
        ]
    result = trainer.evaluate(TEXTS, sequence_length=length, batch_size=3)
    assert result.tokens == len(losses)
    assert result.loss == pytest.approx(math.fsum(losses) / len(losses), rel=1e-5)


def test_evaluate_reads_no_more_than_the_model_can(build):
    trainer = build({"max_position_embeddings": 16, "position_embedding": "learned_absolute"})
    assert trainer.evaluate(TEXTS) == trainer.evaluate(TEXTS, sequence_length=16)


@pytest.mark.parametrize("training", [True, False])
def test_evaluate_leaves_the_model_in_its_mode(build, training):
    trainer = build()
    trainer.model.train(training)
    trainer.evaluate(TEXTS)
    assert trainer.model.training is training


def test_evaluate_without_a_token_to_predict_is_refused(build):
    with pytest.raises(ConfigError, match=r"sequences of 1 token.* have none to predict"):
        build().evaluate(TEXTS, sequence_length=1)
    with pytest.raises(ConfigError, match=r"sequence_length \(0\) must be a whole number"):
        build().evaluate(TEXTS, sequence_length=0)


def test_evaluate_reads_another_column(build):
    import datasets

    trainer = build()
    rows = datasets.Dataset.from_dict({"body": TEXTS})
    assert trainer.evaluate(rows, text_key="body") == trainer.evaluate(TEXTS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, r"batch_size \(0\) must be a whole number, at least 1"),
        ({"batch_size": 2.5}, r"batch_size \(2.5\) must be a whole number, at least 1"),
        ({"num_epochs": 0}, r"num_epochs \(0\) must be a number, greater than 0; try 1"),
        (
            {"learning_rate": -1},
            r"learning_rate \(-1\) must be a number, greater than 0; try 0.001",
        ),
        ({"max_steps": 0}, r"max_steps \(0\) must be a whole number, at least 1"),
        (
            {"sequence_length": 64},
            r"data.sequence_length \(64\) must not exceed model.max_position_embeddings \(32\)",
        ),
    ],
)
def test_train_with_a_wrong_number_is_explained(options, message, build):
    trainer = build({"max_position_embeddings": 32})
    with pytest.raises(ConfigError, match=message):
        trainer.train(TEXTS, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"load_balancing": "aux_los"},
            r"method 'aux_los'. Did you mean 'aux_loss'\?",
        ),
        ({"router_z_loss_coef": -1}, r"router_z_loss_coef \(-1\) must be a number, at least 0"),
        (
            {"overrides": {"parallel.expert_paralel_size": 2}},
            "unknown key 'expert_paralel_size' in section 'parallel'. Did you mean "
            r"'expert_parallel_size'\?",
        ),
    ],
)
def test_trainer_with_a_wrong_option_is_explained(options, message, build):
    with pytest.raises(ConfigError, match=message):
        build(**options)


def test_visualize_before_training_is_explained(build):
    with pytest.raises(ConfigError, match=r"no routing to show yet; call train\(...\) first"):
        build().visualize_routing()


def test_save_model_can_be_loaded(build, tmp_path):
    trainer = build()
    trainer.save_model(tmp_path / "model")
    loaded = MoEModel.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(loaded[k], v) for k, v in trainer.model.state_dict().items())


def test_tokenizer_is_the_trainers_and_saved_with_the_model(build, tokenizer, tmp_path):
    trainer = build()
    assert trainer.model.tokenizer is None
    trainer.save_model(tmp_path / "model")
    assert trainer.tokenizer == trainer.model.tokenizer == tokenizer
    assert MoEModel.from_pretrained(tmp_path / "model").tokenizer == tokenizer


def test_model_keeps_its_own_tokenizer_unless_another_is_given(build, tokenizer, tmp_path):
    other = train_tokenizer(TEXTS, tmp_path / "other", vocab_size=270)
    trainer = build(tokenizer=None)
    trainer.model.tokenizer = other
    assert trainer.tokenizer == other
    again = MoETrainer(trainer.model, tokenizer=tokenizer)
    assert again.tokenizer == trainer.model.tokenizer == tokenizer


def test_save_model_over_a_file_is_explained(build, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"cannot write a model to .*file: "):
        build().save_model(tmp_path / "file")
