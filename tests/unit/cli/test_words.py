"""Words of a command line: each belongs to the flag before it, ours or Megatron's."""

from argparse import ArgumentParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_megatron.cli.pretrain import main, option_parser, parse_options
from moe_megatron.cli.verbs.slurm.inside import words_for_ranks
from moe_megatron.cli.words import grouped_by_flag, read_words
from moe_megatron.errors import ConfigError

OVERRIDES = ("moe.num_experts=16", "training.learning_rate=1e-3", "moe.top_k=4")
OURS = st.one_of(
    st.lists(st.sampled_from(OVERRIDES), min_size=1).map(lambda values: ["--set", *values]),
    st.sampled_from(OVERRIDES).map(lambda value: [f"--set={value}"]),
    st.sampled_from(["runs/a", "5"]).map(lambda value: ["--run-dir", value]),
    st.just(["--debug"]),
)
THEIRS = st.tuples(
    st.sampled_from(["--train-iters", "--data-path", "--moe-router-load-balancing-type=a", "--lr"]),
    st.lists(st.sampled_from(["5", "-1", "0.5", "a=b", "aux_loss", "runs/a"])),
).map(lambda pair: [pair[0], *pair[1]])


@given(st.lists(st.one_of(OURS, THEIRS)))
def test_words_divide_by_the_flag_before_them(groups):
    known, flags = read_words(option_parser(), [word for group in groups for word in group])
    theirs = [group for group in groups if group[0] not in ("--set", "--run-dir", "--debug")]
    theirs = [group for group in theirs if not group[0].startswith("--set=")]
    assert flags == [word for group in theirs for word in group]
    sets = [word for group in groups if group[0].startswith("--set") for word in group]
    assert known.set == [word.removeprefix("--set=") for word in sets if word != "--set"]
    assert known.debug == (["--debug"] in groups)


@given(st.lists(st.sampled_from(["--a", "--a=1", "-h", "x", "-1"])))
def test_groups_keep_every_word_in_order(words):
    groups = list(grouped_by_flag(words, ["-h"]))
    assert [word for group in groups for word in group] == words
    assert all(word in {"x", "-1"} for group in groups for word in group[1:])


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        (["--train-iters", "5"], {}),
        (["--data-path", "0.3", "a", "0.7", "b"], {}),
        (["--cp-comm-type", "p2p", "a2a"], {"cp-comm-type": ("p2p", "a2a")}),
        (["--iterations-to-skip", "3", "4"], {"iterations-to-skip": ("3", "4")}),
        (["--rampup-batch-size", "4", "4", "8"], {"rampup-batch-size": ("4", "4", "8")}),
        (["--recompute-modules", "moe"], {"recompute-modules": "moe"}),
        (["--manual-gc"], {"manual-gc": True}),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_overrides_after_a_flag_are_not_its_values(before, kept):
    words = ["--config", "test_tiny", *before, "--set", "moe.num_experts=16", "training.seed=7"]
    config = parse_options(words).config
    assert (config.moe.num_experts, config.training.seed) == (16, 7)
    assert config.megatron == kept
    assert parse_options([*words[:2], *words[-3:], *before]).config == config


@pytest.mark.parametrize("processes", [["--processes", "2"], ["--processes=2"]])
def test_ranks_are_not_told_how_many_they_are(processes):
    words = ["--config", "a", "--data-path", "b", "c"]
    assert words_for_ranks([*words, *processes]) == words_for_ranks([*processes, *words]) == words


def test_a_positional_word_is_not_the_value_of_a_flag():
    parser = ArgumentParser(allow_abbrev=False)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--before", action="store_true")
    for words in (["--before", "runs/a"], ["runs/a", "--before"]):
        known, flags = read_words(parser, [*words, "--train-iters", "5"])
        assert (known.run, known.before, flags) == ("runs/a", True, ["--train-iters", "5"])
    known, flags = read_words(parser, ["--train-iters", "5"])
    assert (known.run, flags) == (None, ["--train-iters", "5"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--train-iters", "5", "--run-dir", "a", "b"],
            "--run-dir takes one value, but is followed by 'a b'; leave out 'b', or put it after ",
        ),
        (
            ["--data-path", "a", "--debug", "b"],
            "--debug takes no value, but is followed by 'b'; leave out 'b', or put it after the ",
        ),
        (["a", "--lr", "1"], "'a' is not a flag; give flags as in '--num-layers 6', and values "),
    ],
)
def test_a_loose_word_is_refused_with_its_place(words, message):
    with pytest.raises(ConfigError) as refused:
        read_words(option_parser(), words)
    assert str(refused.value).startswith(message)


def test_help_after_a_flag_is_help(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--train-iters", "5", "-h"])
    assert end.value.code == 0
    assert "--set FIELD=VALUE" in capsys.readouterr().out
