import pytest

from moe_megatron.cli import train as train_module
from moe_megatron.cli.main import main
from moe_megatron.cli.train import choose_expert_parallel_size, train
from moe_megatron.config import apply_overrides, dump_yaml, load_config
from moe_megatron.platform import launch

MOCK = ["--config", "test_tiny", "--mock-data"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


@pytest.fixture
def launched(monkeypatch):
    """The commands that torchrun would have been given."""
    commands = []

    def run(command, *, debug):
        commands.append(list(command))
        return 7

    monkeypatch.setattr(launch, "run_torchrun", run)
    return commands


def words_of(command):
    """What stands behind the script."""
    return command[next(i for i, w in enumerate(command) if w.endswith("pretrain_moe.py")) + 1 :]


def finished_run(folder, steps=("iter_0000002",)):
    (folder / "checkpoints").mkdir(parents=True)
    config = apply_overrides(load_config("test_tiny"), {"run_dir": str(folder)})
    (folder / "config.yaml").write_text(dump_yaml(config))
    (folder / "metrics.jsonl").touch()
    if steps:
        (folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("2")


def test_print_config_shows_what_would_run(capsys):
    assert train([*MOCK, "--seed", "9", "--num-processes", "2", "--print-config"]) == 0
    config = capsys.readouterr().out
    assert "  seed: 9\n" in config
    assert "  mock-data: true\n" in config


def test_processes_are_started_with_the_same_words(launched, capsys):
    assert train([*MOCK, "--seed", "9", "--num-processes=2"]) == 7
    command = launched[0]
    assert command[:2] == ["--nproc-per-node", "2"]
    assert words_of(command) == [*MOCK, "--seed", "9", "--run-dir", "runs/test_tiny"]
    printed = capsys.readouterr().out
    assert "processes: 2 (it was requested)\n" in printed
    assert "running: torchrun --nproc-per-node 2 pretrain_moe.py --config test_tiny " in printed


def test_used_run_directory_is_given_a_number(launched, place):
    finished_run(place / "mine")
    train([*MOCK, "--num-processes", "1", "--run-dir", "mine"])
    assert words_of(launched[0]) == [*MOCK, "--run-dir", "mine-2"]


def test_resume_takes_configuration_and_checkpoints_of_the_run(launched, place):
    finished_run(place / "run")
    train(["--resume", "run", "--mock-data", "--num-processes", "1", "--train-iters", "20"])
    assert words_of(launched[0]) == [
        *("--config", "run/config.yaml", "--run-dir", "run", "--load", "run/checkpoints"),
        *("--mock-data", "--train-iters", "20"),
    ]


def test_expert_parallel_size_is_fitted_and_told(launched, capsys):
    train([*MOCK, "--num-processes", "1", "--expert-model-parallel-size", "2"])
    assert words_of(launched[0])[-4:-2] == ["--expert-model-parallel-size", "1"]
    assert (
        "expert parallel size: 1 (2 is configured, but does not fit 1 process(es))"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("overrides", "processes", "expected"),
    [
        ({}, 1, 1),
        ({"parallel.expert_parallel_size": 2}, 4, 2),
        ({"parallel.expert_parallel_size": 4}, 2, 2),
        ({"parallel.expert_parallel_size": 4}, 6, 2),
        ({"parallel.expert_parallel_size": 2}, 3, 1),
        # Nothing fits, so validation will say what to do.
        ({"parallel.expert_parallel_size": 2, "parallel.tensor_parallel_size": 4}, 6, 2),
        (
            {"parallel.expert_parallel_size": 4, "parallel.pipeline_parallel_size": 2},
            4,
            2,
        ),
    ],
)
def test_expert_parallel_size_is_the_largest_that_fits(overrides, processes, expected):
    config = apply_overrides(load_config("test_tiny"), overrides)
    choice = choose_expert_parallel_size(config, processes)
    assert choice.value == expected
    assert choice.reason


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--resume", "nowhere"], "nowhere holds no run to resume (config.yaml is missing)."),
        ([*MOCK, "--moe-router-topkk", "1"], "Megatron has no flag --moe-router-topkk. Did you"),
        ([*MOCK, "--num-processes", "0"], "num_processes (0) must be at least 1"),
    ],
)
def test_mistake_is_found_before_a_process_starts(words, message, launched, capsys):
    assert main(["train", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert launched == []


def test_resume_of_a_run_without_checkpoint_says_how_to_start_anew(place, launched, capsys):
    finished_run(place / "run", steps=())
    assert main(["train", "--resume", "run"]) == 2
    assert capsys.readouterr().err == (
        "error: run holds no checkpoint to resume from: it ended before the first one, or "
        "checkpoint.save_interval was null. Start it again with: moe-megatron train --config "
        "run/config.yaml\n"
    )


def test_number_of_processes_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        train([*MOCK, "--num-processes", "two"])
    assert ended.value.code == 2
    assert "argument --num-processes: invalid int value: 'two'" in capsys.readouterr().err


def test_option_with_its_value_is_taken_out():
    words = ["--a", "1", "--resume", "x", "--b", "--resume=y", "--num-processes", "2", "c"]
    kept = train_module._without(words, "--resume", "--num-processes")
    assert kept == ["--a", "1", "--b", "c"]
