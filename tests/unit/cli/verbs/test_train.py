import pytest

from moe_megatron.cli.main import main
from moe_megatron.cli.verbs.train import run as train
from moe_megatron.config import apply_overrides, dump_yaml, load_config
from moe_megatron.errors import EXIT_CODE
from moe_megatron.platform.launch import End
from moe_megatron.run import attempts

MOCK = ["--config", "test_tiny", "--mock-data"]


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return tmp_path


configs = {}


@pytest.fixture
def launched(monkeypatch):
    """The commands that torchrun would have been given."""
    commands = []

    def run(command, scratch, *, debug, on_stop):
        # The file is gone when the launcher has ended: for the ranks of a resume it is a copy.
        file = next(word for word in command if word.endswith("config.yaml"))
        commands.append(list(command))
        configs[file] = load_config(file)
        return End(code=EXIT_CODE)

    monkeypatch.setattr(attempts, "run_torchrun", run)
    return commands


def config_of(command):
    """What the ranks read: one file, and nothing else stands behind the script."""
    script = next(i for i, w in enumerate(command) if w.endswith("pretrain_moe.py"))
    option, file = command[script + 1 :]
    assert option == "--config"
    return configs[file]


def finished_run(folder, steps=("iter_0000002",)):
    (folder / "checkpoints").mkdir(parents=True)
    config = apply_overrides(load_config("test_tiny"), {"run_dir": str(folder)})
    (folder / "config.yaml").write_text(dump_yaml(config))
    (folder / "metrics.jsonl").touch()
    for step in steps:
        (folder / "checkpoints" / step).mkdir()


def test_print_config_shows_what_would_run(capsys):
    assert train([*MOCK, "--seed", "9", "--num-processes", "2", "--print-config"]) == 0
    config = capsys.readouterr().out
    assert "  seed: 9\n" in config
    assert "  mock-data: true\n" in config


def test_processes_are_started_with_one_file(launched, place, capsys):
    assert train([*MOCK, "--seed", "9", "--num-processes=2"]) == EXIT_CODE
    command = launched[0]
    assert command[:2] == ["--nproc-per-node", "2"]
    assert command[-1] == "runs/test_tiny/config.yaml"
    config = config_of(command)
    wanted = {"training.seed": 9, "megatron.mock-data": True}
    router = config.moe.router.to_plain()
    assert config == apply_overrides(load_config("test_tiny"), {**wanted, "moe.router": router})
    assert router["score_function"] == "softmax"
    printed = capsys.readouterr().out
    assert "processes: 2 (it was requested)\n" in printed
    shown = "pretrain_moe.py --config runs/test_tiny/config.yaml"
    assert f"running: torchrun --nproc-per-node 2 {shown}\n" in printed


def test_used_run_directory_is_given_a_number(launched, place):
    finished_run(place / "mine")
    train([*MOCK, "--num-processes", "1", "--run-dir", "mine"])
    assert config_of(launched[0]).run_dir == "mine-2"
    assert (place / "mine-2" / "config.yaml").exists()


def test_resume_takes_configuration_and_checkpoints_of_the_run(launched, place):
    finished_run(place / "run")
    train(["--resume", "run", "--mock-data", "--num-processes", "1", "--train-iters", "20"])
    config = config_of(launched[0])
    assert (config.run_dir, config.checkpoint.load) == ("run", "run/checkpoints")
    assert config.training.train_steps == 20
    assert load_config("run/config.yaml").training.train_steps != 20  # as the ranks may refuse


def test_resume_may_take_another_configuration(launched, place):
    finished_run(place / "run")
    train(["--resume", "run", *MOCK, "--num-processes", "1", "--lr", "1e-3"])
    config = config_of(launched[0])
    assert (config.run_dir, config.checkpoint.load) == ("run", "run/checkpoints")
    assert config.training.learning_rate == 1e-3


def test_tracebacks_are_asked_of_the_ranks(launched):
    train([*MOCK, "--num-processes", "1", "--debug"])
    assert launched[0][-3:] == ["--config", "runs/test_tiny/config.yaml", "--debug"]


def test_expert_parallel_size_is_fitted_and_told(launched, capsys):
    train([*MOCK, "--num-processes", "1", "--expert-model-parallel-size", "2"])
    assert config_of(launched[0]).parallel.expert_parallel_size == 1
    assert (
        "expert parallel size: 1 (2 is configured, but does not fit 1 process(es))"
        in capsys.readouterr().out
    )


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
        "error: run holds no checkpoint to resume from: the run ended before its first one, or "
        "checkpoint.save_interval was null. Start it again with: moe-megatron train --config "
        "run/config.yaml\n"
    )


def test_number_of_processes_that_is_none_is_refused(capsys):
    assert main(["train", *MOCK, "--num-processes", "two"]) == 2
    assert "argument --num-processes: invalid int value: 'two'" in capsys.readouterr().err
