"""A command that is refused changes no file and makes none."""

import json
import shutil
from pathlib import Path

import pytest

from moe_megatron.cli import main
from moe_megatron.config import apply_overrides, dump_yaml, load_config

MOCK = ["--config", "test_tiny", "--mock-data", "--num-processes", "1"]
RESUME = ["train", "--resume", "run", "--num-processes", "1"]
NEW = ["train", *MOCK, "--run-dir", "new"]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of 10 steps that has a checkpoint of step 4, and one that is whole."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("MOE_MEGATRON_CACHE", str(tmp_path / "cache"))
    make_run(tmp_path / "run", step=4)
    make_run(tmp_path / "whole", step=10)
    make_run(tmp_path / "lost", step=4)
    shutil.rmtree(tmp_path / "lost" / "checkpoints" / "iter_0000004")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "words.txt").write_text("hello")
    return tmp_path


def make_run(folder: Path, *, step: int) -> None:
    saved = folder / "checkpoints" / f"iter_{step:07d}"
    saved.mkdir(parents=True)
    values = {"run_dir": folder.name, "megatron.mock-data": True}
    text = dump_yaml(apply_overrides(load_config("test_tiny"), values))
    (folder / "config.yaml").write_text(text)
    (saved / ".metadata").touch()
    (saved / "config.yaml").write_text(text)
    (folder / "metrics.jsonl").write_text(json.dumps({"kind": "step", "step": step}) + "\n")
    (folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text(str(step))


def contents(place: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time and bytes, and every folder."""
    return {
        str(path.relative_to(place)): (
            (path.stat().st_mtime_ns, path.read_bytes()) if path.is_file() else (0, b"")
        )
        for path in sorted(place.rglob("*"))
    }


REFUSED: dict[str, tuple[list[str], str]] = {
    "resume of another model": (
        [*RESUME, "--hidden-size", "128"],
        "run/checkpoints/iter_0000004 was saved from another model: model.hidden_size is 64 there "
        "and 128 here.",
    ),
    "resume with another seed": (
        [*RESUME, "--seed", "7"],
        "run/checkpoints/iter_0000004 cannot be resumed with these changes: training.seed is 1234 "
        "there and 7 here, but the checkpoint counts the sequences it has read in an order that "
        "would be another one. Start a new run from its weights instead, with --load, --finetune "
        "and another --run-dir.",
    ),
    "resume with longer sequences": (
        [*RESUME, "--seq-length", "64"],
        "run/checkpoints/iter_0000004 cannot be resumed with these changes: data.sequence_length "
        "is 32 there and 64 here",
    ),
    "resume with the plain optimizer": (
        [*RESUME, "--set", "parallel.distributed_optimizer=false"],
        "run/checkpoints/iter_0000004 cannot be resumed with these changes: "
        "parallel.distributed_optimizer is True there and False here",
    ),
    "resume with a wrong value": (
        [*RESUME, "--set", "training.learning_rate=fast"],
        "training.learning_rate needs",
    ),
    "resume with an unknown field": (
        [*RESUME, "--set", "training.lerning_rate=1"],
        "unknown key 'lerning_rate' in section 'training'. Did you mean 'learning_rate'?",
    ),
    "resume with an unknown flag": (
        [*RESUME, "--moe-router-topkk", "1"],
        "Megatron has no flag --moe-router-topkk. Did you mean --moe-router-topk?",
    ),
    "resume in a layout that does not fit": (
        [*RESUME, "--tensor-model-parallel-size", "4"],
        "world size (1) is not divisible by tensor_parallel_size (4)",
    ),
    "resume from elsewhere": (
        [*RESUME, "--load", "whole/checkpoints"],
        "--resume and --load contradict each other: it resumes from the checkpoints of its own "
        "folder.",
    ),
    "resume into another folder": (
        [*RESUME, "--run-dir", "new"],
        "--resume and --run-dir contradict each other: it goes on in the folder that it names. "
        "Leave one out; for a new run from the weights of run, give --load run/checkpoints "
        "--finetune and another --run-dir.",
    ),
    "resume from step 0": (
        [*RESUME, "--finetune"],
        "--resume and --finetune contradict each other: it would start at step 0",
    ),
    "resume without its checkpoint": (
        ["train", "--resume", "lost", "--num-processes", "1"],
        "lost holds no checkpoint to resume from",
    ),
    "resume of nothing": (
        ["train", "--resume", "nowhere"],
        "nowhere holds no run to resume (config.yaml is missing).",
    ),
    "new run of another model": (
        [*NEW, "--load", "run/checkpoints", "--hidden-size", "128"],
        "run/checkpoints/iter_0000004 was saved from another model",
    ),
    "new run from nothing": (
        [*NEW, "--load", "nowhere"],
        "nowhere holds no complete checkpoint",
    ),
    "new run with a layout that does not fit": (
        [*NEW, "--pipeline-model-parallel-size", "2"],
        "world size (1) is not divisible by tensor_parallel_size (1) x pipeline_parallel_size (2)",
    ),
    "conversion of nothing": (
        ["convert", "nowhere", "new"],
        "nowhere is not a folder; give the folder of a Hugging Face model or of a Megatron",
    ),
    "conversion of text": (["convert", "words.txt", "new"], "words.txt is not a folder; give"),
    "conversion of a run": (
        ["convert", "run", "new"],
        "run/checkpoints/iter_0000004/metadata.json is missing or unreadable; a finished Megatron",
    ),
    "data that is not prepared": (
        ["data", "inspect", "missing"],
        "missing is not an indexed dataset (missing.bin and .idx are missing)",
    ),
    "monitor that never looks": (
        ["monitor", "run", "--interval", "0s"],
        "--interval must be a time such as 500ms, 5s or 1m30s, not '0s'",
    ),
    "report of nothing": (
        ["report", "nowhere"],
        "nowhere/metrics.jsonl: no such file, but a report needs it",
    ),
    "dashboards for nobody": (
        ["grafana", "push", "--url", "ftp://nobody"],
        "--url must be http://HOST:PORT or https://HOST, not 'ftp://nobody'.",
    ),
    "inspection of text": (
        ["inspect", "words.txt"],
        "words.txt holds neither config.json (Hugging Face) nor .metadata",
    ),
    "verification of nothing": (
        ["verify", "nowhere", "run"],
        "nowhere holds neither config.json (Hugging Face) nor .metadata",
    ),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_refused_command_changes_no_file(
    mistake: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = REFUSED[mistake]
    before = contents(place)
    try:
        code = main.main(words)
    except SystemExit as refusal:  # argparse
        code = int(str(refusal.code))
    said = capsys.readouterr().err
    assert code == 2, said
    assert message in said
    assert contents(place) == before


def test_resume_of_a_finished_run_says_so_and_changes_nothing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(place)
    assert main.main(["train", "--resume", "whole", "--num-processes", "1"]) == 0
    assert capsys.readouterr().out.endswith(
        "nothing to do: whole/checkpoints/iter_0000010 is the end of a run of 10 steps. To train "
        "on, give a larger number, such as --train-iters 20.\n"
    )
    assert contents(place) == before
