"""Batch scripts as text, and the committed ones against the command that they name."""

import shlex
from pathlib import Path

import pytest

from moe_megatron.cli.main import main
from moe_megatron.config.checkpoint_files import CHECKPOINTS, TRACKER
from moe_megatron.errors import AGAIN, ConfigError
from moe_megatron.platform.slurm.node_layout import Layout
from moe_megatron.platform.slurm.script import COMMON, BatchJob, render

EXAMPLES = Path(__file__).parents[4] / "examples" / "slurm"
RENDERED = sorted(
    path for path in EXAMPLES.glob("*.sbatch") if "# Rendered by: " in path.read_text()
)
JOB = {"name": "a", "run_dir": "runs/a", "words": ["--config", "demo_moe"]}
GPUS = Layout(nodes=2, processes_per_node=8)


@pytest.mark.parametrize("path", RENDERED, ids=lambda path: path.stem)
def test_committed_script_is_what_its_command_renders(path: Path, capsys) -> None:
    text = path.read_text()
    command = shlex.split(text.split("# Rendered by: ")[1].splitlines()[0])
    assert command[:3] == ["moe-megatron", "slurm", "render"]
    assert main(command[1:]) == 0
    assert capsys.readouterr().out == text


def test_every_way_to_train_has_a_script() -> None:
    names = {path.stem for path in RENDERED}
    models = ("demo_moe", "switch_base_128", "mixtral_8x7b", "olmoe_1b_7b", "qwen3_30b_a3b")
    assert {*(f"pretrain_{name}" for name in (*models, "deepseek_v3")), "finetune_olmoe_1b_7b"} == (
        names
    )


def test_gpus_take_whole_nodes_and_cpus_their_cores() -> None:
    assert "#SBATCH --gpus-per-node=8\n#SBATCH --exclusive\n" in render(
        BatchJob(**JOB, layout=GPUS)
    )
    cpus = Layout(nodes=2, processes_per_node=2, gpus=False)
    text = render(BatchJob(**JOB, layout=cpus, cores_per_process=3))
    assert "#SBATCH --cpus-per-task=6\n" in text
    assert "gpus" not in text


def test_words_are_quoted() -> None:
    job = BatchJob(**{**JOB, "run_dir": "runs/a b", "words": ["--set", "a=$(rm x)"]}, layout=GPUS)
    text = render(job)
    assert "MOE_RUN=${MOE_RUN:-'runs/a b'}" in text
    assert "train --set 'a=$(rm x)' \"$@\"" in text


@pytest.mark.parametrize("name", ["", "a b", "runs/a", "%j"])
def test_name_that_sbatch_would_misread_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="a job cannot be called"):
        BatchJob(**{**JOB, "name": name}, layout=GPUS)


@pytest.mark.parametrize("option", ["partition=gpu", "--a\n#SBATCH --b"])
def test_directive_that_is_no_option_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match="--sbatch needs an option of sbatch"):
        BatchJob(**JOB, layout=GPUS, directives=[option])


def test_common_file_names_what_python_names() -> None:
    """The shell cannot import constants."""
    text = COMMON.read_text()
    assert f"$MOE_RUN/{CHECKPOINTS}/{TRACKER}" in text
    assert f"{AGAIN}) return ;;" in text
    assert (EXAMPLES / "_job.sh").resolve() == COMMON.resolve()
