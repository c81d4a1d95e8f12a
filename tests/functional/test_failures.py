"""What a user gets to read when something is wrong: one paragraph, exit code 2, no traceback.

One process meets the failures one after another. One failure is met by two processes from the
command line.
"""

import contextlib
import io
import json
import logging
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from moe_megatron.errors import FAULT
from moe_megatron.testing.distributed import NO_LAUNCHER, run_distributed

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

TINY = ["--config", "test_tiny"]
SHORT = [*TINY, "--train-iters", "2", "--lr-warmup-iters", "0"]
MOCK = [*SHORT, "--mock-data"]


# --- the program ---------------------------------------------------------------------------------


def meet(cases: dict[str, tuple[str, list[str]]], place: Path) -> dict[str, dict[str, Any]]:
    """What each case answers, by name."""
    from moe_megatron.cli import main, pretrain

    answers: dict[str, Any] = {}
    for name, (verb, words) in cases.items():
        said, told = io.StringIO(), io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(told):
            try:
                code = main.main(words) if verb == "moe-megatron" else pretrain.main(words)
            except Exception:  # what a user would see as a traceback
                code = 1
                traceback.print_exc()
        answers[name] = {"code": code, "error": said.getvalue(), "output": told.getvalue()}
    answers["sink"] = _train_with_a_failing_sink(place)
    return answers


def _train_with_a_failing_sink(place: Path) -> dict[str, Any]:
    from moe_megatron.cli.pretrain import parse_options
    from moe_megatron.config import apply_overrides
    from moe_megatron.run.start import Attachments, start
    from moe_megatron.telemetry.values.records import EvalRecord, RunInfo, StepRecord
    from moe_megatron.telemetry.values.snapshot import RoutingSnapshot

    class Broken:
        def start(self, run: RunInfo) -> None:
            pass

        def step(self, record: StepRecord, routing: RoutingSnapshot | None) -> None:
            raise ConnectionError("the dashboard is down")

        def evaluation(self, record: EvalRecord) -> None:
            pass

        def close(self) -> None:
            pass

    warnings = io.StringIO()
    logging.getLogger("moe_megatron").addHandler(logging.StreamHandler(warnings))
    config = apply_overrides(parse_options(MOCK).config, {"run_dir": str(place / "sink")})
    result = start(config, attached=Attachments(sinks=[Broken()]))
    return {"steps": result.outcome.steps, "losses": result.history.losses} | {
        "warnings": warnings.getvalue()
    }


# --- the cases -----------------------------------------------------------------------------------


def cases(place: Path, corpus: Path, tokenizer: Path) -> dict[str, tuple[str, list[str]]]:
    """Every failure by name: the program, and what is typed behind it."""
    real = [*SHORT, "--set", f"data.tokenizer={tokenizer}"]
    launched: dict[str, list[str]] = {
        "world size": [*MOCK, "--num-processes", "2", "--tensor-model-parallel-size", "4"],
        "batch": [*MOCK, "--num-processes", "3"],
        "experts": [
            *(*MOCK, "--num-processes", "3", "--global-batch-size", "3"),
            *("--expert-model-parallel-size", "3"),
        ],
        "no data file": [*real, "--data-path", "missing.jsonl"],
        "empty data file": [*real, "--data-path", "empty.jsonl"],
        "broken data file": [*real, "--data-path", "broken.jsonl"],
        "garbage": ["--config", "garbage.yaml"],
        "no mapping": ["--config", "words.yaml"],
        "unknown key": ["--config", "unknown_key.yaml"],
        "unknown flag": [*MOCK, "--moe-router-topkk", "1"],
        "unknown preset": ["--config", "tset_tiny"],
        "resume of nothing": ["--resume", "nowhere"],
        "resume without checkpoint": ["--resume", "unsaved"],
    }
    save = ["--set", "checkpoint.save_interval=2"]
    trained: dict[str, list[str]] = {
        "seed": [*MOCK, *save, "--run-dir", "seed"],
        "unsaved": [*MOCK, "--run-dir", "unsaved"],
        "another model": [*MOCK, "--load", "seed/checkpoints", "--hidden-size", "128"],
        "no checkpoint": [*MOCK, "--load", "nowhere"],
        "file in the way": [*MOCK, "--run-dir", "words.yaml/run"],
        "read only": [*MOCK, *save, "--run-dir", "readonly/run"],
        "disk full": [
            *(*MOCK, *save, "--run-dir", "small/run", "--set", "checkpoint.patience_seconds=1"),
        ],
        "refused by Megatron": [*MOCK, "--fp16", "--set", "training.precision=bf16"],
        "no evaluation": [
            *(*real, "--data-path", str(corpus), "other.jsonl", "--run-dir", "no-evaluation"),
        ],
    }
    return {name: ("pretrain_moe.py", words) for name, words in trained.items()} | {
        name: ("moe-megatron", ["train", *words]) for name, words in launched.items()
    }


EXPECTED = {
    "world size": (
        "world size (2) is not divisible by tensor_parallel_size (4) x pipeline_parallel_size (1) "
        "x context_parallel_size (1) = 4; start 4 processes, or use smaller parallel sizes."
    ),
    "batch": (
        "global_batch_size (4) must be a multiple of micro_batch_size (1) x data parallel size (3);"
        " try global_batch_size 3 or 6."
    ),
    "experts": "expert_parallel_size (3) must divide num_experts (4); try 1, 2 or 4.",
    "no data file": "data file missing.jsonl does not exist; check the path",
    "empty data file": "data file empty.jsonl is empty; write it again, or leave it out.",
    "garbage": "garbage.yaml: line 2 is not valid YAML",
    "no mapping": "words.yaml: the file needs a mapping of sections, such as 'model:', at its top.",
    "unknown key": ("unknown_key.yaml: unknown key 'topk' in section 'moe'. Did you mean 'top_k'?"),
    "unknown flag": ("Megatron has no flag --moe-router-topkk. Did you mean --moe-router-topk?"),
    "unknown preset": (
        "'tset_tiny' is neither a file nor a preset. Did you mean 'test_tiny'? Presets are: "
    ),
    "resume of nothing": (
        "nowhere holds no run to resume (config.yaml is missing). Give the folder of a run, such "
        "as runs/demo_moe."
    ),
    "resume without checkpoint": (
        "unsaved holds no checkpoint to resume from: the run ended before its first one, or "
        "checkpoint.save_interval was null. Start it again with: moe-megatron train --config "
        "unsaved/config.yaml"
    ),
    "another model": (
        "seed/checkpoints/iter_0000002 was saved from another model: model.hidden_size is 64 there "
        "and 128 here. Load it with the configuration beside it (--config "
        "seed/checkpoints/iter_0000002/config.yaml), or choose a checkpoint of this model."
    ),
    "no checkpoint": (
        "nowhere holds no complete checkpoint (latest_checkpointed_iteration.txt is missing). Give "
        "the folder that contains the iter_* folders, or leave --load out to start anew."
    ),
    "file in the way": (
        "the run directory words.yaml/run cannot be written (Not a directory). Change its "
        "permissions or free space, or choose another one with --run-dir."
    ),
    "refused by Megatron": "Megatron refuses these settings: it demands 'assert not args.bf16'. ",
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working directory: bad files, a disk of 1 MB, a folder that is mounted read-only."""
    folder = tmp_path_factory.mktemp("failures")
    (folder / "empty.jsonl").touch()
    other = [json.dumps({"text": f"Text {i} of another source, to blend."}) for i in range(120)]
    (folder / "other.jsonl").write_text("\n".join(other))
    (folder / "broken.jsonl").write_text('{"text": "fine"}\n{"text": \n[1, 2]\n')
    (folder / "garbage.yaml").write_text("base: [\n x: {{")
    (folder / "words.yaml").write_text("hello")
    (folder / "unknown_key.yaml").write_text("base: test_tiny\nmoe:\n  topk: 2\n")
    small, read_only = folder / "small", folder / "readonly"
    small.mkdir()
    read_only.mkdir()
    mounted = [
        path
        for path, options in ((small, "size=1m"), (read_only, "ro"))
        if _succeeds("mount", "-t", "tmpfs", "-o", options, "tmpfs", path)
    ]
    yield folder
    for path in mounted:
        assert _succeeds("umount", path)


def _succeeds(*words: object) -> bool:
    return subprocess.run(list(map(str, words)), capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def answers(place: Path, corpus: Path, tokenizer: Path, cache: Path) -> dict[str, dict[str, Any]]:
    """What each case answered, by name."""
    found = cases(place, corpus, tokenizer)
    environment = {**NO_LAUNCHER, "MOE_MEGATRON_CACHE": str(cache)}
    given = {"world_size": 1, "environment": environment, "directory": place}
    return run_distributed(meet, found, place, **given)[0]


@pytest.mark.parametrize("name", EXPECTED)
def test_failure_is_one_paragraph_that_names_the_remedy(
    name: str, answers: dict[str, dict[str, Any]]
) -> None:
    assert_explained(answers[name], EXPECTED[name])


def assert_explained(answer: dict[str, Any], expected: str) -> None:
    error = answer["error"]
    assert answer["code"] == 2, error
    assert error.startswith(f"error: {expected}")
    assert error.count("\n") == 1
    assert error.endswith("\n")


def test_broken_lines_are_listed_below_the_remedy(answers: dict[str, dict[str, Any]]) -> None:
    answer = answers["broken data file"]
    assert answer["code"] == 2
    paragraph, *lines = answer["error"].partition("error: ")[2].splitlines()
    assert paragraph == (
        "2 of 3 lines (66.67%) are malformed, more than max_bad_line_ratio (0.10%) allows; repair "
        "them, or raise max_bad_line_ratio to leave them out. First:"
    )
    assert [line.partition("broken.jsonl:")[2].partition(" ")[0] for line in lines] == ["2:", "3:"]


def test_read_only_folder_is_explained(answers: dict[str, dict[str, Any]], place: Path) -> None:
    if not (place / "readonly").is_mount():
        pytest.skip("mounting needs root; run the tests as root in a container")
    assert_explained(
        answers["read only"],
        "the run directory readonly/run cannot be written (Read-only file system). Change its "
        "permissions or free space, or choose another one with --run-dir.",
    )


def test_full_disk_is_explained(answers: dict[str, dict[str, Any]], place: Path) -> None:
    if not (place / "small").is_mount():
        pytest.skip("mounting needs root; run the tests as root in a container")
    answer = answers["disk full"]
    assert answer["code"] == FAULT
    assert "error: the last checkpoint, of step 2, could not be written to small" in answer["error"]
    assert "No space left on device; there is no other one. Free space, then" in answer["error"]


@pytest.mark.parametrize("name", ["seed", "unsaved", "no evaluation"])
def test_run_after_failed_ones_in_the_same_process_succeeds(
    name: str, answers: dict[str, dict[str, Any]]
) -> None:
    assert answers[name]["code"] == 0, answers[name]["error"]
    assert "step 2/2 | loss " in answers[name]["output"]


def test_failing_sink_is_left_out_and_training_goes_on(answers: dict[str, dict[str, Any]]) -> None:
    answer = answers["sink"]
    assert answer["steps"] == 2
    assert len(answer["losses"]) == 2
    assert answer["warnings"].count("the dashboard is down") == 1
    assert (
        "sink Broken failed: ConnectionError: the dashboard is down; training goes on"
        in answer["warnings"]
    )


def test_two_processes_say_a_failure_once(
    answers: dict[str, dict[str, Any]], place: Path, moe: Callable[..., Any]
) -> None:
    words = [*MOCK, "--load", "seed/checkpoints", "--hidden-size", "128", "--num-processes", "2"]
    program = moe(place, "train", *words)
    assert program.end() == 2, program.output
    assert program.output.count("error: ") == 1
    assert f"error: {EXPECTED['another model']}" in program.output
    assert "Traceback" not in program.output
    assert program.family() == []
