import pytest

from moe_megatron.cli import pretrain
from moe_megatron.cli.pretrain import main, parse_options, report_error
from moe_megatron.config import load_config
from moe_megatron.errors import ConfigError

TINY = ["--config", "test_tiny"]


def parsed(*words):
    return parse_options([*TINY, *words]).config


def test_default_is_the_demo():
    assert parse_options([]).config == load_config("demo_moe")


def test_set_overrides_one_field():
    assert parsed("--set", "moe.top_k=1", "--set", "moe.router.pre_softmax=true").moe.top_k == 1


def test_megatron_flag_overrides_the_field_it_stands_for():
    config = parsed("--num-layers", "4", "--moe-router-topk=3", "--lr", "3e-3")
    assert (config.model.num_layers, config.moe.top_k) == (4, 3)
    assert config.training.learning_rate == 3e-3
    assert config.megatron == {}


def test_other_megatron_flags_travel_along():
    config = parsed("--mock-data", "--manual-gc-interval", "5")
    assert config.megatron == {"mock-data": True, "manual-gc-interval": "5"}


def test_later_and_more_particular_words_win(tmp_path):
    (tmp_path / "base.yaml").write_text("base: test_tiny\ntraining: {seed: 1, train_steps: 50}\n")
    (tmp_path / "mine.yaml").write_text("base: base.yaml\ntraining: {seed: 2}\nrun_dir: mine\n")
    words = ["--config", str(tmp_path / "mine.yaml")]
    config = parse_options(words).config
    assert (config.training.seed, config.training.train_steps, config.run_dir) == (2, 50, "mine")
    assert config.model == load_config("test_tiny").model
    assert parse_options([*words, "--seed", "3"]).config.training.seed == 3
    both = parse_options([*words, "--seed", "3", "--set", "training.seed=4", "--run-dir", "x"])
    assert (both.config.training.seed, both.config.run_dir) == (4, "x")


def test_print_config_is_a_configuration_that_loads_again(capsys, tmp_path):
    assert main([*TINY, "--seed", "7", "--mock-data", "--print-config"]) == 0
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert load_config(path) == parsed("--seed", "7", "--mock-data")


def test_print_config_of_another_rank_is_silent(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert main([*TINY, "--print-config"]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--set", "moe.topk=1"], "unknown key 'topk' in section 'moe'. Did you mean 'top_k'?"),
        (["--set", "moe.top_k"], "an override needs the form section.field=value, such as "),
        (["--set", "moe.top_k=two"], "moe.top_k needs a whole number, not 'two' (text)."),
        (["--moe-router-topk", "two"], "moe.top_k needs a whole number, not 'two' (text)."),
        (["--train-iters"], "--train-iters needs a value, as in '--train-iters VALUE'"),
        (["--train-iters", "1", "2"], "--train-iters takes one value, but is followed by '1 2'"),
        (["stray"], "--config takes one value, but is followed by 'test_tiny stray'; leave out "),
        (["--set", "moe.top_k=1", "2"], "an override needs the form section.field=value, such as"),
        (["--config", "tset_tiny"], "'tset_tiny' is neither a file nor a preset. Did you mean "),
    ],
)
def test_wrong_word_is_one_line_and_2(words, message, capsys):
    assert main([*TINY, *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_debug_shows_the_traceback(capsys):
    assert main([*TINY, "--set", "moe.topk=1", "--debug"]) == 2
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_interrupt_is_a_word_and_130(capsys, monkeypatch):
    def interrupted(options, callbacks):
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "_train", interrupted)
    assert main(TINY) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_error_of_another_rank_alone_is_told_with_its_number(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setattr(pretrain, "_PATIENCE_SECONDS", 0.0)
    report_error(ConfigError("too bad."), debug=False)
    assert capsys.readouterr().err == "error on rank 3: too bad.\n"
