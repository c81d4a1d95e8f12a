"""`FineTuner` on preferences: the loss of Megatron's loop is that of the formula in plain torch."""

from pathlib import Path
from typing import Any

import pytest
import torch

from moe_megatron import FineTuner, MoEModel
from moe_megatron.config.preferences import PreferencesConfig
from moe_megatron.data.instructions.packing import packed_rows
from moe_megatron.data.instructions.stored import StoredPairs
from moe_megatron.errors import DataError
from moe_megatron.finetuning.task_profile import task_profile
from moe_megatron.mcore import world
from moe_megatron.mcore.tuning.preference_loss import PAIRS, pair_scores, preference_loss
from moe_megatron.text.demo import demo_tokenizer
from moe_megatron.training.texts import index_data

TEMPLATE = (
    "{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
ROWS = [
    {"prompt": f"{it}?", "chosen": " ".join(["yes"] * (it % 3 + 1)), "rejected": f"no {it}"}
    for it in range(8)
]
HELD_OUT = [
    {"prompt": "9?", "chosen": "yes yes", "rejected": "no 9"},
    {"prompt": "1?", "chosen": "no", "rejected": "yes"},
]
BETA = 0.3


@pytest.fixture
def tuner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tok"
    demo_tokenizer(vocab_size=512).save(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    torch.manual_seed(1)
    model = MoEModel(
        hidden_size=32, num_experts=4, num_layers=2, num_attention_heads=2, vocab_size=512,
        aux_loss_coef=0.0, z_loss_coef=0.0,
    )  # fmt: skip
    fp32 = {"training.precision": "fp32"}
    yield FineTuner(
        model,
        tokenizer=str(folder),
        run_dir=tmp_path / "run",
        overrides=fp32,
        train=["experts", "router"],
    )
    world.leave()


def log_probs(model: MoEModel, stored: StoredPairs) -> torch.Tensor:
    """The twin: answer by answer, token by token, [pairs, 2]."""
    found = []
    for number in range(len(stored)):
        for ids, learned in stored.parts(number, 10**6):
            tokens = torch.from_numpy(ids.astype("int64"))
            scores = torch.log_softmax(model(tokens[None]).logits[0], dim=-1)
            of_answer = [scores[it - 1, tokens[it]] for it in range(1, len(ids)) if learned[it]]
            found.append(torch.stack(of_answer).sum())
    return torch.stack(found).view(-1, 2)


@pytest.mark.distributed
def test_training_is_that_of_the_formula_in_plain_torch(tuner):
    prefix, tokens = index_data(ROWS, tuner.tokenizer, "text", "preferences", length=128)
    stored, rows = StoredPairs(prefix), tokens // 128
    assert len(packed_rows(stored, 128).rows) == rows > 1
    model = tuner.model.train()
    held_out = StoredPairs(
        index_data(HELD_OUT, tuner.tokenizer, "text", "preferences", length=128)[0]
    )
    assert len(packed_rows(held_out, 128).rows) == 1
    with torch.no_grad():
        reference = log_probs(model, stored)
        before = log_probs(model, held_out)
    frozen = {it: p.clone() for it, p in model.named_parameters() if "attention" in it}
    trained = [p for it, p in model.named_parameters() if ".experts." in it or "router" in it]
    optimizer = torch.optim.SGD(trained, lr=0.0)  # the first step's gradient, of all pairs
    now = log_probs(model, stored)
    h = BETA * ((now[:, 0] - now[:, 1]) - (reference[:, 0] - reference[:, 1]))
    loss = -torch.log(torch.sigmoid(h)).mean()
    loss.backward()
    squares = [p.grad.square().sum() for p in trained if p.grad is not None]
    optimizer.zero_grad()
    result = tuner.train(
        ROWS,
        task="preferences",
        eval_dataset=HELD_OUT,
        beta=BETA,
        num_epochs=4,
        batch_size=rows,
        sequence_length=128,
        learning_rate=3e-3,
        warmup_steps=0,
    )
    steps = result.history.steps
    assert steps[0].loss == pytest.approx(float(loss), rel=1e-5)
    assert steps[0].grad_norm == pytest.approx(float(torch.stack(squares).sum().sqrt()), rel=1e-4)
    after = tuner.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in frozen.items())
    with torch.no_grad():
        ratio = log_probs(tuner.model, stored) - reference
    assert ratio[:, 0].sum() > ratio[:, 1].sum()
    assert steps[-1].measures["reward_margin"] > 0
    assert result.history.columns()["reward_accuracy"][-1] > 0.5
    with torch.no_grad():
        moved = log_probs(tuner.model, held_out) - before
    h = BETA * (moved[:, 0] - moved[:, 1])
    evaluation = result.history.last_evaluation
    assert evaluation.loss == pytest.approx(float(-torch.sigmoid(h).log().mean()), rel=1e-4)
    assert evaluation.measures == {
        "reward_margin": pytest.approx(float(h.mean()), rel=1e-3),
        "reward_accuracy": float((h > 0).float().mean()),
    }


def test_experts_that_a_task_uses_are_counted_on_both_answers(tuner):
    prefix, _ = index_data(ROWS, tuner.tokenizer, "text", "preferences", length=128)
    read = sum(len(ids) for it in range(len(ROWS)) for ids, _ in StoredPairs(prefix).parts(it, 128))
    profile = task_profile(
        tuner.model, tuner.tokenizer, ROWS, "preferences", length=128, sequences=2 * len(ROWS)
    )
    top_k = tuner.model.moe_config.top_k
    assert profile.tokens_per_expert.sum(axis=1).tolist() == [read * top_k] * 2
    assert len(tuner.train_used_experts(ROWS, 0.5, task="preferences")) == 2


def test_conversations_are_no_pairs_and_pairs_no_conversations(tuner, tmp_path):
    chat = [{"prompt": "Hi", "completion": "Hello"}]
    with pytest.raises(DataError, match=r"holds conversations \(completion\) with one answer"):
        tuner.train(chat, task="preferences")
    with pytest.raises(DataError, match=r"holds pairs of a chosen and a rejected answer"):
        tuner.train(ROWS, task="instructions")
    pairs, _ = index_data(ROWS, tuner.tokenizer, "text", "preferences", length=128)
    samples, _ = index_data(chat, tuner.tokenizer, "text", "completion", length=128)
    with pytest.raises(DataError, match=r"holds pairs of .*, and not conversations"):
        tuner.train(pairs, task="instructions")
    with pytest.raises(DataError, match=r"does not hold pairs of a chosen"):
        tuner.train(samples, task="preferences")
    with pytest.raises(DataError, match=r"which only a training on preferences reads"):
        tuner.evaluate(ROWS, data_format="preferences")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "config",
    [
        PreferencesConfig(beta=0.2),
        PreferencesConfig(beta=0.2, label_smoothing=0.2),
        PreferencesConfig(beta=0.2, loss="ipo"),
    ],
)
def test_loss_of_a_micro_batch_is_the_mean_over_its_pairs_one_by_one(config):
    """Rows with padding between, and one pair twice, as at the border of two epochs."""
    torch.manual_seed(3)
    pairs = torch.tensor([[2, 2, -2, -2, -2, 0, 2, 2, -2, -2, -2, 1, 1, 1, -1, -1, 0, 0]])
    mask = (torch.rand(pairs.shape) > 0.3) & (pairs != 0)
    losses = torch.rand(pairs.shape)
    reference = -torch.rand(2, 2)
    scores = pair_scores({PAIRS: pairs, "loss_mask": mask}, losses)
    assert scores.numbers_P.tolist() == [1, 1, 0]
    total, number, report = preference_loss(scores, reference[scores.numbers_P], config)
    expected, wins = [], 0
    for first, middle, last, pair in ((0, 2, 5, 1), (6, 8, 11, 1), (11, 14, 16, 0)):
        log_p = -losses[0] * mask[0]
        d = log_p[first:middle].sum() - log_p[middle:last].sum()
        ratio = d - (reference[pair, 0] - reference[pair, 1])
        wins += int(ratio > 0)
        h, s = config.beta * ratio, config.label_smoothing
        if config.loss == "ipo":
            expected.append((ratio - 1 / (2 * config.beta)) ** 2)
        else:
            right, wrong = torch.sigmoid(h).log(), torch.sigmoid(-h).log()
            expected.append(-(1 - s) * right - s * wrong)
    assert number == 3
    assert float(total) == pytest.approx(float(torch.stack(expected).sum()), rel=1e-5)
    assert report["reward_accuracy"].tolist() == [wins, 3]
    assert report["lm loss"].tolist() == pytest.approx([float(total), 3])
